# guestflow: `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty --abbrev=12 2>/dev/null || echo dev)
LINT := bin/golangci-lint
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
BIN := bin

.DEFAULT_GOAL := build

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

.PHONY: build
build: consumer guestflow ## the service and the command, each one static binary: bin/consumer, bin/guestflow

.PHONY: consumer guestflow
# One commit, one binary: neither the folder nor a .git in it leaves a trace; the stamps say where it is from.
consumer guestflow:
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $(BIN)/$@ ./cmd/$@

.PHONY: demo
demo: build ## the main job, shown on an embedded NATS and a simulated vCenter; ends by itself (2 min on a fresh machine, then 20 s)
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o bin/demo ./cmd/demo
	@bin/demo

.PHONY: test
# By default the compiler, the linter and the tests collect garbage for a tenth of their time.
test: export GOGC ?= 300
test: fmt vet ## everything that CI runs: gofmt, vet, lint, tests with the race detector, alerts and dashboards
	@$(MAKE) --no-print-directory -j2 --output-sync=target service lint packages rules chart

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
	$(GO) build -C tools/lint -o $(CURDIR)/bin/ tool

.PHONY: unit
unit: service packages ## the tests alone

# These wait more than they compute: five of them at once, and `make test` lints, builds and tests the rest beside them. The service that they start has the race
# detector in it; NATS and the simulated vCenter in the tests' own process have not, which halves their cost and uses what vet compiled.
.PHONY: service
service:
	$(GO) test -vet=off -shuffle=on -parallel 5 -timeout 12m ./test/e2e

# Those that take longest first.
.PHONY: packages
packages:
	$(GO) test -race -vet=off -shuffle=on -timeout 12m ./internal/handler ./docs $$($(GO) list ./... | grep -v /test/e2e$$)

.PHONY: docs
docs: ## every snippet of the pages, those too that need nats (built here), Python, Node.js, Terraform or Ansible: 3 minutes; not part of test
	$(GO) test -vet=off -count=1 -v -run 'TestSnippets|TestEveryBlock|TestCommandsInSentences' ./docs -all

.PHONY: cover
cover: ## the tests with their coverage: bin/cover.html
	@mkdir -p bin
	$(GO) test -coverpkg=./internal/...,./schemas/... -coverprofile=bin/cover.out ./...
	$(GO) tool cover -html=bin/cover.out -o bin/cover.html
	$(GO) tool cover -func=bin/cover.out | tail -1

.PHONY: sbom
sbom: consumer ## bill of materials of the service, CycloneDX, held against schema and binary: bin/consumer.cdx.json
	$(GO) tool -modfile=deploy/sbom/go.mod cyclonedx-gomod bin -json -std -licenses -noserial -notimestamp -version '$(VERSION)' \
		-output bin/consumer.cdx.json bin/consumer
	$(GO) test -C deploy/sbom -count=1 . -args -binary $(CURDIR)/bin/consumer -sbom $(CURDIR)/bin/consumer.cdx.json

# An image's date is its commit's: with the same base image it is the same image, whenever and wherever it is built.
IMAGE ?= ghcr.io/guestflow/guestflow
PLATFORMS ?= linux/amd64,linux/arm64
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
IMAGE_ARGS = --platform $(PLATFORMS) --build-arg 'VERSION=$(VERSION)' --build-arg COMMIT=$(COMMIT) \
	--build-arg CREATED=$$(date -u -d @$(SOURCE_DATE_EPOCH) +%Y-%m-%dT%H:%M:%SZ) $(if $(GO_IMAGE),--build-arg GO_IMAGE=$(GO_IMAGE))

.PHONY: image image-cli
image: ## the service's image for amd64 and arm64: a manifest list in buildah's storage, else, by docker, bin/image.tar
image: IMAGE_ARGS += --target service
image-cli: ## the same of the guestflow command; by docker bin/image-cli.tar
image-cli: IMAGE_ARGS += --target cli
# buildah would add to a list that is there. It is told where it runs: 1.28 does not know BUILDPLATFORM in a FROM.
image image-cli:
	@mkdir -p bin
	if command -v buildah >/dev/null; then \
		buildah manifest rm $(IMAGE)$(@:image%=%):$(VERSION) >/dev/null 2>&1; \
		buildah build --manifest $(IMAGE)$(@:image%=%):$(VERSION) --timestamp $(SOURCE_DATE_EPOCH) --identity-label=false \
			--build-arg BUILDPLATFORM=linux/$$($(GO) env GOHOSTARCH) $(IMAGE_ARGS) .; \
	else \
		docker buildx build --tag $(IMAGE)$(@:image%=%):$(VERSION) --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
			--output type=oci,dest=bin/$@.tar,rewrite-timestamp=true $(IMAGE_ARGS) .; \
	fi

.PHONY: image-test
image-test: ## builds the image on a stand-in for its base and starts it, read-only; needs root, buildah and this machine's own Go
	$(GO) test -count=1 -v -tags image -timeout 90m ./deploy/image

.PHONY: rules
rules: ## alerts fire when they should and not else, dashboards ask for what there is; by Prometheus's own engine, in a module of its own
	$(GO) test -C deploy/helm/tests/monitoring -vet=off -count=1 .

# Prometheus without its UI and its service discoveries.
bin/prometheus bin/promtool: deploy/helm/tests/monitoring/go.mod deploy/helm/tests/monitoring/go.sum
	$(GO) build -C deploy/helm/tests/monitoring -tags remove_all_sd -o $(CURDIR)/$@ github.com/prometheus/prometheus/cmd/$(@F)

.PHONY: dashboard-look
dashboard-look: build bin/prometheus bin/promtool ## promtool on the alerts; then the dashboards with data, as pages and, by chromium, pictures: bin/dashboards
	bin/promtool check rules deploy/helm/files/alerts.yaml
	bin/promtool test rules deploy/helm/tests/monitoring/alerts_test.yaml
	$(GO) run -C deploy/helm/tests/monitoring ./look $(LOOK_ARGS)

# Helm's own code as a library, in a module of its own.
.PHONY: chart
chart: ## the Helm chart: lint, rendering with many values, unit tests, every object against Kubernetes' schemas
	$(GO) test -C deploy/helm/tests -vet=off -count=1 .

.PHONY: chart-generate
chart-generate: ## values.yaml and the table of the chart's README, from values.schema.json
	$(GO) test -C deploy/helm/tests -count=1 -run TestValuesAndTable . -args -update

.PHONY: cluster-test
cluster-test: build ## the chart in a real API server, built here (10 minutes), and what it says to run as a process; not part of test
	$(GO) build -C tools/cluster -o $(CURDIR)/bin/etcd go.etcd.io/etcd/server/v3
	$(GO) build -C tools/cluster -o $(CURDIR)/bin/ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$($(GO) list -C tools/cluster -m -f '{{.Version}}' k8s.io/kubernetes)" \
		k8s.io/kubernetes/cmd/kube-apiserver
	$(GO) build -C deploy/helm/tests -ldflags '-s -w' -o $(CURDIR)/bin/ tool
	$(GO) test -C deploy/helm/tests -tags cluster -count=1 -v -timeout 20m -run TestCluster . -args -bin $(CURDIR)/bin

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
