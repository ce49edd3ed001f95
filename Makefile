# The entry points for building, testing and running Millrace. `make help` lists them.

TOOLS    := $(CURDIR)/.tools
BIN      := $(TOOLS)/bin
BUF      := $(TOOLS)/npm/node_modules/@bufbuild/buf-linux-x64/bin/buf
LINT     := $(BIN)/golangci-lint
NPM_DONE := $(TOOLS)/npm/node_modules/.package-lock.json
TESTFLAGS ?=
BENCHFLAGS ?=
LINTFLAGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build bin/millrace
	go build -o bin/millrace ./cmd/millrace

.PHONY: run
run: build $(NPM_DONE) ## install missing tools, start the whole system on loopback with demo orders, and serve
	bin/millrace up

.PHONY: tools
tools: $(NPM_DONE) ## install the tools that make run and the tests need from npm: the SQL engine, buf

.PHONY: servers
servers: ## install the real servers and external clients that the tests use
	@$(MAKE) --no-print-directory -j3 all-servers

# They are independent of each other, and wait for downloads most of the time.
.PHONY: all-servers real-servers python-tools
all-servers: $(NPM_DONE) real-servers python-tools
real-servers:
	@scripts/servers
python-tools:
	@scripts/python-tools

.PHONY: engines
engines: servers ## also install the heavy engines: Trino, Spark, Kafka Connect with Iceberg's sink, Feast
	@scripts/servers engines.d

.PHONY: test
test: $(NPM_DONE) ## run all tests; those that need a missing server are skipped (make servers installs them)
	go test -timeout 80m $(TESTFLAGS) ./...

.PHONY: test-real
test-real: ## run all tests; those that need a missing server fail
	MILLRACE_REQUIRE_SERVERS=1 $(MAKE) test

.PHONY: test-engines
test-engines: ## test only external engines and clients: PyIceberg, DuckDB, Trino, Spark, Confluent's (make engines installs them)
	MILLRACE_REQUIRE_SERVERS=1 go test -count=1 -timeout 30m -run 'OutsideReaders|RealYear' ./lake/landing ./test/e2e
	MILLRACE_REQUIRE_SERVERS=1 go test -count=1 -timeout 30m ./test/interop
	MILLRACE_REQUIRE_SERVERS=1 MILLRACE_ENGINES=1 MILLRACE_ENGINES_LINES=0 go test -count=1 -timeout 60m ./test/engines
	MILLRACE_REQUIRE_SERVERS=1 MILLRACE_ENGINES=1 go test -count=1 -p 1 -timeout 30m ./test/servers/trino ./test/servers/spark ./test/servers/connect
	MILLRACE_REQUIRE_SERVERS=1 MILLRACE_ENGINES=1 go test -count=1 -run TestFeastClient ./features/serving ./features/feast

.PHONY: up-real
up-real: build $(NPM_DONE) ## start every real server, and each role in its own process, on loopback
	go run ./test/servers/upreal

.PHONY: faults
faults: $(NPM_DONE) ## break the network to each server in turn; writes docs/faults.md (ten minutes)
	go test ./test/faults -count=1 -timeout 60m -full -report "$(CURDIR)/docs/faults.md"

.PHONY: kill
kill: $(NPM_DONE) ## run the whole kill matrix, or only ROLE=lake; writes docs/kill-matrix.md; resumes a stopped run
	MILLRACE_REQUIRE_SERVERS=1 go test -count=1 -timeout 180m -v ./test/kill $(if $(ROLE),-run TestMatrix$$ -kill.role $(ROLE),-kill.full)

.PHONY: abuse
abuse: $(NPM_DONE) ## send 10,000 hostile inputs to every surface of a running system; writes docs/abuse.md
	go test -count=1 -timeout 120m -v ./test/abuse -abuse.inputs 10000 -abuse.report $(CURDIR)/docs/abuse.md

.PHONY: check
check: build lint gen-fresh breaking deploy-check ## build, lint, check generated code, contracts and deploy/, vet, and run all tests with -race
	go vet ./...
	$(MAKE) test TESTFLAGS="-race -timeout 90m $(TESTFLAGS)"

.PHONY: lint
lint: $(LINT) $(NPM_DONE) ## golangci-lint (import rule included) and buf lint
	$(LINT) run $(LINTFLAGS) ./...
	$(BUF) lint

.PHONY: gen
gen: $(NPM_DONE) $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## generate Go from proto/
	$(BUF) lint
	rm -rf gen
	$(BUF) generate

.PHONY: gen-fresh
gen-fresh: gen ## fail if the committed generated code differs from what proto/ generates
	@git diff --exit-code --stat -- gen || { echo "gen/ is stale: commit what 'make gen' wrote"; exit 1; }
	@test -z "$$(git status --porcelain -- gen)" || { git status --short -- gen; echo "gen/ is stale: commit what 'make gen' wrote"; exit 1; }

# Published contracts must not break. Without another main, this compares with the previous commit.
.PHONY: breaking
breaking: $(NPM_DONE) ## fail if proto/ breaks a contract that main has published
	@scripts/proto-breaking $(BUF)

.PHONY: deploy-check
deploy-check: ## validate deploy/: Compose by its schema, Kubernetes with the code of its API server
	@scripts/deploy-check

.PHONY: bench
bench: ## run all Go benchmarks, each beside its upper bound
	go test -run '^$$' -bench . -benchmem ./...

.PHONY: bench-lake
bench-lake: ## compare landing in Iceberg with Kafka Connect's Iceberg sink (make engines installs it)
	go run ./bench/lake $(BENCHFLAGS)

.PHONY: bench-features
bench-features: ## measure lookups of feature vectors beside their ceiling and Feast's own server (make engines installs it)
	go run ./bench/features $(BENCHFLAGS)

.PHONY: bench-load
bench-load: ## overload a running system (bin/millrace up --no-demo), and report accepted and rejected commands
	go run ./bench/load $(BENCHFLAGS)

.PHONY: fuzz
fuzz: ## run every fuzz target for 20 s
	@scripts/fuzz 20s

.PHONY: clean
clean: ## remove bin/; keep .tools and data
	rm -rf bin

$(NPM_DONE): tools/package.json tools/package-lock.json
	mkdir -p $(TOOLS)/npm
	cp tools/package.json tools/package-lock.json $(TOOLS)/npm/
	npm ci --prefix $(TOOLS)/npm --ignore-scripts --no-audit --no-fund
	touch $@

$(LINT):
	GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.14.0

$(BIN)/protoc-gen-go: go.mod
	GOBIN=$(BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go
	touch $@

$(BIN)/protoc-gen-connect-go: go.mod
	GOBIN=$(BIN) go install connectrpc.com/connect/cmd/protoc-gen-connect-go
	touch $@
