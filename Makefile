# guestflow: `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LINT := bin/golangci-lint
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := build

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

.PHONY: build
build: consumer guestflow ## the service and the command, each one static binary: bin/consumer, bin/guestflow

.PHONY: consumer guestflow
consumer guestflow:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/$@ ./cmd/$@

.PHONY: demo
demo: consumer ## NATS, a simulated vCenter and the service: three requests, their events as they come; ends by itself
	$(GO) build -o bin/demo ./cmd/demo
	bin/demo -consumer bin/consumer

.PHONY: test
test: fmt vet lint unit ## everything that CI runs: gofmt, vet, lint, tests with the race detector

.PHONY: fmt
fmt: ## gofmt, go.mod and go.sum as they should be
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi
	$(GO) mod tidy -diff

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: lint
lint: $(LINT) ## golangci-lint
	$(LINT) run ./...

# Built from its module, in a module of its own: its dependencies are not ours.
$(LINT): tools/lint/go.mod tools/lint/go.sum
	cd tools/lint && $(GO) build -o ../../$(LINT) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: unit
unit: consumer ## the tests alone
	$(GO) test -race -shuffle=on -timeout 12m ./...

.PHONY: cover
cover: ## the tests with their coverage: bin/cover.html
	@mkdir -p bin
	$(GO) test -coverpkg=./internal/...,./schemas/... -coverprofile=bin/cover.out ./...
	$(GO) tool cover -html=bin/cover.out -o bin/cover.html
	$(GO) tool cover -func=bin/cover.out | tail -1

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
