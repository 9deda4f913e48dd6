# Everything here runs on a machine with Go 1.26, Python 3.10 and make; what else is needed is installed by name.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# goolm: Matrix' own end-to-end encryption (for the device's identity) in Go, without cgo.
export GOFLAGS := -buildvcs=false -tags=goolm

CACHE := $(or $(MLS_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/matrix-mls)
# Tests run at low priority: a homeserver that is being tested must not starve.
NICE := nice -n 5
DEMO_DIR ?= .lab/demo
DEMO_PORT ?= 18400
BENCH ?= .
BENCHTIME ?= 1s
BENCH_SIZES ?= 1000,5000
BENCH_ROUNDS ?= 3
# -least: of the rounds take the fastest instead of the median, on a machine that does other things, too.
BENCH_LEAST ?=
N ?= 50
ROOMS ?= 200
MODULE_ROOMS ?= 1000
MODULE_FLAGS ?=
SCALE_DIR ?= .lab/scale-$(N)
SCALE_SIZES ?= 10,50,200,500,1000,2000,5000
SOAK ?= 10
FUZZTIME ?= 1m
COMMIT = $(shell git rev-parse HEAD)

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The programs need nothing beside them, no C library either.
PROGRAMS = CGO_ENABLED=0 go build -trimpath -ldflags='-s -w'
BIN = bin/

.PHONY: build
build: ## the programs, into bin/
	$(PROGRAMS) -o $(BIN) ./cmd/...

.PHONY: demo
demo: lab-install ## three federated homeservers, an encrypted conversation, left running
	$(PROGRAMS) -o bin/ ./cmd/... ./lab/demo
	bin/demo -dir $(DEMO_DIR) -bin bin -port $(DEMO_PORT)

.PHONY: demo-stop
demo-stop: ## end what make demo left running, and delete it
	@if [ -e $(DEMO_DIR)/state.json ]; then python3 -B lab/homeservers.py down --dir $(DEMO_DIR) --wipe; else echo "no demo is running"; fi

.PHONY: test
test: ## everything: check, unit tests with -race, vectors, interop, end to end
	@$(MAKE) --no-print-directory -j2 installed check bin/testreport
	$(NICE) bin/testreport all

# One after the other: both may install packages.
.PHONY: installed
installed: lab-clients
	@$(MAKE) --no-print-directory peer

.PHONY: test-fast
test-fast: bin/testreport ## no servers and no foreign libraries, under 4 minutes
	bin/testreport fast

.PHONY: test-unit test-simulate test-rooms test-large test-interop test-lab test-e2e
test-unit: bin/testreport ## one stage of make test
	$(NICE) bin/testreport unit
test-simulate: bin/testreport ## 500 simulated rooms of servers that fail and lie
	$(NICE) bin/testreport simulate
test-rooms: bin/testreport ## 50 simulated rooms of real clients and modules, 10 of them with liars
	$(NICE) bin/testreport rooms
test-large: bin/testreport ## 50 clients that commit at once, and others that are too slow under the race detector
	$(NICE) bin/testreport large
test-interop: peer bin/testreport ## live groups with OpenMLS and mls-rs
	$(NICE) bin/testreport interop
test-lab: lab-install bin/testreport ## the homeservers that the end-to-end tests run on
	$(NICE) bin/testreport lab
test-e2e: lab-clients bin/testreport ## real homeservers, modules and clients
	$(NICE) bin/testreport e2e

.PHONY: check
check: vet bin/staticcheck bin/rules ## formatting, vet, staticcheck, and the project's own rules
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted (gofmt -w):"; echo "$$unformatted"; exit 1; fi
	bin/staticcheck ./...
	bin/rules
	cd tools && GOFLAGS=-buildvcs=false go test ./testreport

.PHONY: vet
vet: ## go vet
	go vet ./...
	go vet -tags=goolm,nheko,pictures ./e2e ./proxy/server
	cd tools && GOFLAGS=-buildvcs=false go vet ./...

.PHONY: bench
bench: ## the benchmarks of mls (BENCH=pattern, BENCHTIME=1s)
	go test ./mls -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -timeout 60m

.PHONY: bench-peers
bench-peers: bin/benchpeers ## mls beside OpenMLS and mls-rs, into docs/speed.md (about 10 minutes on a quiet machine)
	bin/benchpeers -peers "$$(MLS_CACHE=$(CACHE) interop/build-peer.sh bench)" -sizes $(BENCH_SIZES) -rounds $(BENCH_ROUNDS) $(BENCH_LEAST) -write docs/speed.md

.PHONY: bench-plots
bench-plots: bin/benchplots ## cost against the size of the group, as docs/speed-*.svg
	bin/benchplots -dir docs

.PHONY: bench-federation
bench-federation: lab-install bin/benchfederation ## what a commit costs across three homeservers, and 3 to 100 simulated ones, into docs/federation-cost.md
	bin/benchfederation

.PHONY: scale
scale: lab-install ## one room of N=50 devices on three homeservers, what single acts cost there, and Megolm beside it (docs/scale.md)
	@mkdir -p bin
	go build -trimpath -o bin/ ./cmd/matrix-mls ./e2e/scale
	bin/scale -n $(N) -dir $(SCALE_DIR) -bin bin -json $(SCALE_DIR).json $(SCALE_FLAGS)

.PHONY: scale-figures
scale-figures: lab-install bin/scaleplots ## make scale with SCALE_SIZES=10,…,5000 leaves, into docs/scale.md with drawings (hours, on a quiet machine)
	@mkdir -p bin
	go build -trimpath -o bin/ ./cmd/matrix-mls ./e2e/scale
	bin/scaleplots -measure $(SCALE_SIZES)

.PHONY: bench-proxy
bench-proxy: lab-install ## what mls-proxy adds, in a room of N=50 devices and to an account with ROOMS=200 rooms (docs/proxy.md)
	@mkdir -p bin
	go build -trimpath -o bin/ ./cmd/... ./e2e/scale
	bin/scale -proxy -n $(N) -rooms $(ROOMS) -dir .lab/proxy-$(N) -bin bin -json .lab/proxy-$(N).json

.PHONY: bench-client
bench-client: ## a message and a commit in a room of 1,000 leaves, a look at 200 rooms, a client that was away for 1,000 commits, and a newcomer to 5,000 leaves (docs/scale.md)
	go test ./client -run '^$$' -bench 'LargeRoom|ManyRooms' -benchtime 20x -timeout 60m
	go test ./client -run '^$$' -bench 'CatchUp|FirstMessage' -benchtime 1x -timeout 6h

.PHONY: bench-module
bench-module: lab-install ## the module with MODULE_ROOMS=1000 rooms of 50 members, on SQLite, and on PostgreSQL with one process and two (docs/scale.md)
	@mkdir -p bin .lab
	go build -trimpath -o bin/ ./cmd/matrix-mls ./e2e/manyrooms
	@failed=; run() { echo "bin/manyrooms $$*"; bin/manyrooms "$$@" || failed=1; }; \
	run -rooms $(MODULE_ROOMS) -database sqlite -json .lab/module-sqlite.json $(MODULE_FLAGS); \
	run -rooms $(MODULE_ROOMS) -database postgres -processes 2 -json .lab/module-postgres.json $(MODULE_FLAGS); \
	test -z "$$failed"

.PHONY: fuzz fuzz-ci
fuzz: bin/fuzz ## every fuzz target for FUZZTIME=1m; the totals go into docs/robustness.md
	nice -n 15 bin/fuzz -time $(FUZZTIME)
fuzz-ci: bin/fuzz
	$(NICE) bin/fuzz -time 30s -sample 12 -seed $(COMMIT) -p 2

.PHONY: mutate mutate-ci
mutate: bin/mutate ## remove each validation of mls in turn; a test must notice
	nice -n 15 bin/mutate ./mls
mutate-ci: bin/mutate
	$(NICE) bin/mutate -sample 20 -seed $(COMMIT) -p 2 ./mls

.PHONY: cover
cover: ## how much of mls its quick tests reach; at least 95 % of the statements
	@mkdir -p bin
	$(NICE) go test ./mls -short -count=1 -timeout=60m -coverprofile=bin/mls.cover
	@go tool cover -func=bin/mls.cover | awk '$$1 == "total:" {seen = 1; if ($$3 + 0 < 95) {print "only " $$3 " of mls is tested, want 95 %: go tool cover -html=bin/mls.cover"; exit 1}} END {if (!seen) exit 1}'

.PHONY: spec spec-ci spec-large
spec: ## the rules of federation, model-checked, and each rule left out (a few minutes; federation/spec)
	nice -n 10 python3 -B federation/spec/check.py
spec-ci: bin/testreport
	$(NICE) bin/testreport spec
spec-large: ## the same rules with more ballots and commits (hours)
	nice -n 15 python3 -B federation/spec/check.py large

.PHONY: soak
soak: lab-clients peer bin/testreport ## faults that take long or need root, then make test's tests SOAK=10 times, to find what fails now and then
	$(NICE) bin/testreport soak
	@for i in $$(seq $(SOAK)); do echo "## run $$i of $(SOAK)"; $(NICE) bin/testreport all || exit 1; done

.PHONY: lab-install
lab-install: ## Synapse, Dendrite and PostgreSQL for tests, into ~/.cache/matrix-mls
	@python3 -B lab/homeservers.py install

.PHONY: lab-clients
lab-clients: ## the same, and a browser and the libraries of Matrix clients
	@python3 -B lab/homeservers.py install --clients

.PHONY: nheko
nheko: peer ## a desktop client in an MLS room, on a screen that nobody sees; pictures into .lab/nheko
	@python3 -B lab/homeservers.py install --desktop
	@rm -rf .lab/nheko; mkdir -p .lab/nheko
	MLS_SCREENSHOTS=$(CURDIR)/.lab/nheko go test -tags=goolm,nheko ./e2e -run '^TestProxyNheko$$' -count=1 -v -timeout 20m

.PHONY: peer
peer: ## the interop partner, with OpenMLS and mls-rs in it
	@MLS_CACHE=$(CACHE) interop/build-peer.sh

# The tools are a module of their own, so that the project does not depend on them.
bin/rules bin/benchpeers bin/benchplots bin/benchfederation bin/scaleplots: bin/%: tools/%/main.go $(wildcard tools/figures/*.go)
	cd tools && GOFLAGS=-buildvcs=false go build -o ../$@ ./$*

bin/fuzz bin/mutate bin/testreport: $(wildcard tools/fuzz/*.go tools/mutate/*.go tools/testreport/*.go)
	cd tools && GOFLAGS=-buildvcs=false go build -o ../$@ ./$(notdir $@)

bin/staticcheck: tools/go.mod tools/go.sum
	cd tools && GOFLAGS=-buildvcs=false go build -o ../$@ honnef.co/go/tools/cmd/staticcheck
