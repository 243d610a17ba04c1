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
help: ## list the targets; minutes are those of two cores
	@awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z0-9 -]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Build and try

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

##@ Tests: what every change needs

.PHONY: test
# By default the compiler, the linter and the tests collect garbage for a tenth of their time.
test: export GOGC ?= 300
test: fmt ## format, lint (with vet), all Go tests, those of the whole system in their short form (8 min on a fresh machine, then 4)
	@$(MAKE) --no-print-directory -j3 --output-sync=target e2e lint unit

.PHONY: fmt
fmt: ## gofmt, go.mod and go.sum as they should be (seconds)
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
		if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi
	$(GO) mod tidy -diff

.PHONY: lint
lint: $(LINT) ## golangci-lint, vet among its linters (2 min the first time, for the linter is built; then 20 s)
	$(LINT) run --allow-parallel-runners ./...

# Built from its module, in a module of its own: its dependencies are not ours.
$(LINT): tools/lint/go.mod tools/lint/go.sum
	$(GO) build -C tools/lint -o $(CURDIR)/bin/ tool

# Those that take longest first, four at once, for they wait more than they compute. The linter vets. What compiles
# everything once more, with the flags of a release, is the lane "reproducible".
BUILDS_ANEW := TestReproducible
.PHONY: unit
unit: ## the tests of every package, but for the whole system (2 min)
	$(GO) test -p 4 -vet=off -shuffle=on -timeout 12m -skip '$(BUILDS_ANEW)' \
		./internal/handler ./docs $$($(GO) list ./... | grep -v /test/e2e$$)

# These wait more than they compute: five of them at once, and `make test` lints and tests the rest beside them. Those
# that need a program of others, which is built first, are the lane "e2e-tools".
E2E := $(GO) test -vet=off -shuffle=on -parallel 5 -timeout 12m ./test/e2e
E2E_TOOLS := TestNATSCommand|TestTraceAcrossATakeover|TestUnsampled|TestCollectorAway
.PHONY: e2e
e2e: ## the tests of the whole system in their short form; test/e2e/README.md (2 min)
	$(E2E) -skip '$(E2E_TOOLS)'

##@ Tests: what CI runs besides, and who touches it

.PHONY: race
# What docs, test/bench and deploy/image test are programs that they build, and files: the detector sees nothing of these.
race: export GOGC ?= 300
race: ## the packages and e2e with the race detector, in e2e in the service itself; needs gcc (6 min)
	@$(MAKE) --no-print-directory -j2 --output-sync=target e2e-race unit-race

.PHONY: e2e-race unit-race
e2e-race:
	$(E2E) -skip '$(E2E_TOOLS)' -race-service
unit-race:
	$(GO) test -race -p 4 -vet=off -shuffle=on -timeout 12m \
		./internal/handler $$($(GO) list ./... | grep -vE '/(test/e2e|test/bench|docs|deploy/image)$$')

.PHONY: chart
chart: ## the Helm chart by Helm's own code: lint, many values, unit tests, every object against Kubernetes' schemas (1 min)
	$(GO) test -C deploy/helm/tests -count=1 .

.PHONY: rules
rules: ## alerts fire when they should and not else, dashboards ask for what there is; by Prometheus's own engine (1 min)
	$(GO) test -C deploy/helm/tests/monitoring -count=1 .

.PHONY: reproducible
reproducible: ## one commit makes one binary, wherever it is built, and it is not too big (1 min)
	$(GO) test -vet=off -count=1 -run '$(BUILDS_ANEW)' ./deploy/image

.PHONY: e2e-tools
e2e-tools: ## the service with the nats command and the OpenTelemetry Collector, which are built first (2 min)
	$(E2E) -run '$(E2E_TOOLS)'

# Each number always draws the same: give the one that was printed, and it all happens again.
RUNS ?= 300
FIRST_RUN ?= $(shell expr $$(date +%s) / 60 % 10000000)
.PHONY: truth
truth: ## RUNS=300 runs against guests that misbehave, other ones at each call; FIRST_RUN=n for the same again (1 min)
	@echo "truth campaign: RUNS=$(RUNS) FIRST_RUN=$(FIRST_RUN)"
	$(GO) test -vet=off -count=1 -timeout 4h -run 'TestTruth$$' ./test/e2e -runs $(RUNS) -first-run $(FIRST_RUN)

##@ Tests: long ones, by hand

FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME=30s (8 min)
	@grep -roE --include='*_test.go' '^func Fuzz\w+' internal | sed 's/:func / /' | while read -r file name; do \
		echo "$$(dirname $$file) $$name"; \
		$(GO) test -vet=off -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file) || exit 1; \
	done

# Needs Linux: what processes use is read in /proc.
BENCH_ARGS ?=
.PHONY: bench
bench: consumer ## guestflow beside a bare loop: runs per second, CPU, calls, memory; docs/develop/benchmarks.md (20 min)
	$(GO) build -o bin/bench ./test/bench
	bin/bench $(BENCH_ARGS)

.PHONY: campaign
campaign: ## every crash point, every pair of crashes, 1,000 requests, 12 servers killed, 2,000 runs of truth (40 min)
	$(GO) test -vet=off -count=1 -v -timeout 2h ./internal/handler -all-schedules
	$(E2E) -count=1 -timeout 3h -every-point -requests 1000 -kills 12 -runs 2000 -first-run $(FIRST_RUN)

.PHONY: docs
docs: ## every snippet of the pages, those too that need nats (built here), Python, Node.js, Terraform or Ansible (3 min)
	$(GO) test -vet=off -count=1 -v -run 'TestSnippets|TestEveryBlock|TestCommandsInSentences' ./docs -all

.PHONY: cluster-test
cluster-test: build ## the chart in a real API server, which is built here, and what it says to run as a process (12 min)
	$(GO) build -C tools/cluster -o $(CURDIR)/bin/etcd go.etcd.io/etcd/server/v3
	$(GO) build -C tools/cluster -o $(CURDIR)/bin/ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$($(GO) list -C tools/cluster -m -f '{{.Version}}' k8s.io/kubernetes)" \
		k8s.io/kubernetes/cmd/kube-apiserver
	$(GO) build -C deploy/helm/tests -ldflags '-s -w' -o $(CURDIR)/bin/ tool
	$(GO) test -C deploy/helm/tests -tags cluster -count=1 -v -timeout 20m -run TestCluster . -args -bin $(CURDIR)/bin

.PHONY: image-test
image-test: ## builds the image on a stand-in for its base and starts it, read-only; needs root and buildah (10 min)
	$(GO) test -count=1 -v -tags image -timeout 90m ./deploy/image

# Prometheus without its UI and its service discoveries.
bin/prometheus bin/promtool: deploy/helm/tests/monitoring/go.mod deploy/helm/tests/monitoring/go.sum
	$(GO) build -C deploy/helm/tests/monitoring -tags remove_all_sd -o $(CURDIR)/$@ github.com/prometheus/prometheus/cmd/$(@F)

.PHONY: dashboard-look
dashboard-look: build bin/prometheus bin/promtool ## the dashboards with data, as pages and, by a browser (chromium), as pictures: bin/dashboards (10 min)
	bin/promtool check rules deploy/helm/files/alerts.yaml
	bin/promtool test rules deploy/helm/tests/monitoring/alerts_test.yaml
	$(GO) run -C deploy/helm/tests/monitoring ./look $(LOOK_ARGS)

.PHONY: microbench
microbench: ## the benchmarks of single functions (1 min)
	$(GO) test -vet=off -run '^$$' -bench . -benchmem ./internal/...

##@ See

.PHONY: slow
slow: ## which tests take longest: seconds of each package, and of the forty slowest tests (5 min)
	@$(GO) test -vet=off -count=1 -v ./... 2>&1 | awk -f tools/slow.awk

.PHONY: cover
cover: ## the tests with their coverage: bin/cover.html (5 min)
	@mkdir -p bin
	$(GO) test -coverpkg=./internal/...,./schemas/... -coverprofile=bin/cover.out ./...
	$(GO) tool cover -html=bin/cover.out -o bin/cover.html
	$(GO) tool cover -func=bin/cover.out | tail -1

##@ Make what is released

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

.PHONY: chart-generate
chart-generate: ## values.yaml and the table of the chart's README, from values.schema.json
	$(GO) test -C deploy/helm/tests -count=1 -run TestValuesAndTable . -args -update

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
