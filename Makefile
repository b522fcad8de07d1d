# Carillon's commands. `make help` lists them; no other tool is needed to find one's way.

TARGET := $(or $(CARGO_TARGET_DIR),target)
CARILLON := $(TARGET)/release/carillon
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help run build test cluster bench bench-peers lint

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "make %-11s %s\n", $$1, $$2}'

build: ## build the release binary
	cargo build --release --locked -p carillon-gateway

run: build ## one node on port 8082 with the embedded broker, in development mode
	exec $(CARILLON) serve --dev

test: ## install what the tests need (only what is missing) and run them all
	@deploy/dev/prepare
	@TARGET=$(TARGET) tests/run

cluster: build ## redis-server, three nodes, HAProxy and Prometheus on loopback until Ctrl-C (PORT, NODES, NODE_PORT, OPERATOR_PORT, REDIS_PORT, PROMETHEUS_PORT)
	@deploy/dev/prepare redis-server haproxy prometheus
	@exec $(PYTHON) deploy/dev/cluster --binary $(CARILLON)

bench: build ## measure against the floor and the naive server (BENCH="--quick --with-peers", docs/benchmarks.md)
	@deploy/dev/prepare redis-server
	cargo build --release --locked -p carillon-loadtest
	$(TARGET)/release/loadtest bench --carillon $(CARILLON) --json $(TARGET)/bench.json $(BENCH)
	$(TARGET)/release/loadtest report $(TARGET)/bench.json >$(TARGET)/bench.html
	$(TARGET)/release/loadtest notifications --carillon $(CARILLON)

bench-peers: ## install the servers that `make bench BENCH=--with-peers` compares with (nginx with Nchan; Socket.IO, ws, Bun)
	@deploy/dev/prepare peers

lint: ## formatting, clippy and documentation, all without a warning
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
