# One target per step; `.ci/run` calls the same ones.
.DEFAULT_GOAL := help
.PHONY: help demo images sbom programs build lint deny generate test unit peers acceptance harness chart e2e platform faults test-tekton bench-webhook bench-controller bench-engines soak fuzz shell up down

CLUSTER := target/debug/wfe-cluster
# Each is checked alone, too: features of the workspace cannot hide what a crate lacks.
CRATES := wfe-model wfe-core wfe-peers wfe-process wfe-controller wfe-webhook wfe-platform
MACHETE := target/tools/bin/cargo-machete
SBOM := target/tools/bin/cargo-sbom

help: ## List the targets
	@grep -hE '^[a-z][a-z -]*:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-30s %s\n", $$1, $$2 }'

ifeq ($(origin KUBECONFIG),command line)
demo: programs
	@test -n "$(REGISTRY)" || { echo "REGISTRY: name the registry that your cluster pulls from, for example make demo KUBECONFIG=... REGISTRY=registry.example:5000"; exit 2; }
	$(CLUSTER) images $(REGISTRY)
	KUBECONFIG=$(abspath $(KUBECONFIG)) $(CLUSTER) tools -- target/debug/wfe-demo --registry $(REGISTRY) $(if $(KEEP),--keep) $(if $(TEKTON),--tekton)
else
demo: programs ## See the main job on a new cluster, ending one that is up (KEEP=1 leaves it running, TEKTON=1 adds a pipeline; KUBECONFIG=... REGISTRY=...: on yours)
	$(CLUSTER) down
	$(if $(KEEP),$(CLUSTER) $(if $(TEKTON),--tekton) up)
	$(CLUSTER) $(if $(TEKTON),--tekton) run -- target/debug/wfe-demo $(if $(KEEP),--keep) $(if $(TEKTON),--tekton)
endif

images: programs ## Build both images and push them: REGISTRY=host:port, TAG=, PROFILE=dev builds quickly
	@test -n "$(REGISTRY)" || { echo "REGISTRY: name the registry, for example make images REGISTRY=registry.example:5000"; exit 2; }
	$(CLUSTER) images $(REGISTRY) $(if $(TAG),--tag $(TAG)) $(if $(PROFILE),--profile $(PROFILE))

test: unit peers acceptance harness ## Run every test (the first time builds a Kubernetes: about 10 minutes)

programs: ## Build what the demo runs
	cargo build -p wfe-controller -p wfe-webhook -p wfe-tests --bin wfe-controller --bin wfe-webhook --bin wfe-cluster --bin wfe-demo

build: ## Build all binaries and tests
	cargo build --workspace --all-targets

lint: $(MACHETE) ## Check format, lints, documentation, dependencies and module structure
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	set -e; for crate in $(CRATES); do cargo clippy --quiet -p $$crate -- -D warnings; done
	cargo clippy --quiet -p wfe-controller -p wfe-webhook --features otel -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --quiet
	./tests/dependencies.sh
	$(MACHETE)
	cargo test --quiet -p wfe-tests --test harness -- module_circles document_is documents_name

# Finds unused dependencies.
$(MACHETE):
	cargo install --quiet --locked --version 0.9.2 --root target/tools cargo-machete

# Lists the crates in a program.
$(SBOM):
	cargo install --quiet --locked --version 0.10.0 --root target/tools cargo-sbom

sbom: $(SBOM) ## Write the SPDX software bill of materials of each image to target/sbom
	mkdir -p target/sbom
	set -e; for program in wfe-controller wfe-webhook; do $(SBOM) --cargo-package $$program > target/sbom/$$program.spdx.json; done

deny: ## Check licences, bans and sources of all dependencies (needs cargo-deny)
	cargo deny check bans licenses sources

generate: programs ## Write what is generated: the CRDs, schema and README of the chart, certs/, docs/messages.md, docs/metrics.md, docs/flags.md, answers in docs/operations.md
	target/debug/wfe-controller crds > charts/workflow-execution/files/crds.yaml
	WFE_WRITE_ANSWERS=1 cargo test --quiet -p wfe-core --lib operations_guide
	WFE_WRITE_DOCUMENTS=1 cargo test --quiet -p wfe-tests --test harness document_is_what_the_sources_say
	WFE_WRITE_DOCUMENTS=1 $(CLUSTER) tools -- cargo test --quiet -p wfe-tests --test chart documents

unit: build ## Run the tests that need no cluster
	cargo test --workspace --lib --bins
	cargo test -p wfe-fuzz --test corpus
	cargo test -p wfe-process --features otel --test traces

peers: build ## Run the tests of what other services are to us: audit sinks, Data Storage's stand-in
	cargo test --workspace --test peers

acceptance: build ## Run the tests on a real cluster
	$(CLUSTER) run -- cargo test --offline --workspace --test acceptance

harness: build ## Kill clusters at every moment and look at what they leave (ends one that is up)
	$(CLUSTER) down
	cargo test --workspace --test harness

faults: build ## Lose requests, answers and watches in every moment of a run, and crash
	$(CLUSTER) down
	$(CLUSTER) run --api-only -- cargo test --offline --workspace --test faults -- --nocapture --test-threads=1

chart: build ## Run the tests of the chart that need no cluster (the first time builds Helm)
	$(CLUSTER) tools -- cargo test --offline -p wfe-tests --test chart

# Static binaries, for images.
STATIC := RUSTFLAGS="-C target-feature=+crt-static" cargo build --target $(shell uname -m)-unknown-linux-gnu

e2e: build programs ## Run the chart on a cluster: install, upgrade, rotate certificates, uninstall (ends one that is up)
	$(CLUSTER) down
	$(STATIC) -p wfe-controller -p wfe-webhook
	$(CLUSTER) tools -- $(CLUSTER) run -- cargo test --offline -p wfe-tests --test e2e -- --nocapture

PLATFORM := cargo test --offline -p wfe-tests --test platform -- --nocapture

platform: build ## See the whole platform at work: OOMKilled, repaired, notified (ends a cluster that is up)
	$(CLUSTER) down
	$(STATIC) -p wfe-controller -p wfe-webhook -p wfe-platform
	$(CLUSTER) tools -- $(CLUSTER) run -- $(PLATFORM)

test-tekton: build ## Run the tests of engine tekton on a cluster with Tekton (ends one that is up; the first time builds Tekton)
	$(CLUSTER) down
	$(STATIC) -p wfe-controller -p wfe-webhook -p wfe-platform
	$(CLUSTER) --tekton run -- cargo test --offline --workspace --test tekton
	$(CLUSTER) tools -- $(CLUSTER) --tekton run -- $(PLATFORM) --ignored by_tekton

bench-webhook bench-controller: bench-%: programs ## Measure what a program costs (ends a cluster that is up)
	cargo build --release -p wfe-$* -p wfe-tests --bin wfe-$* --bin wfe-bench
	$(CLUSTER) down
	$(CLUSTER) run --api-only -- target/release/wfe-bench $*

soak: build programs ## Half an hour of load while the leader is killed every 30 s, then ten repairs by the platform with a kill in each (ends a cluster that is up)
	cargo build --release -p wfe-controller -p wfe-tests --bin wfe-controller --bin wfe-bench
	$(CLUSTER) down
	$(CLUSTER) run --api-only -- target/release/wfe-bench soak
	$(STATIC) -p wfe-controller -p wfe-webhook -p wfe-platform
	$(CLUSTER) tools -- $(CLUSTER) run -- $(PLATFORM) --ignored whatever_program

bench-engines: programs ## Measure both engines side by side (ends a cluster that is up)
	cargo build --release -p wfe-controller -p wfe-webhook -p wfe-tests --bin wfe-controller --bin wfe-webhook --bin wfe-bench
	$(CLUSTER) down
	$(CLUSTER) --tekton run -- target/release/wfe-bench engines

fuzz: ## Fuzz what is read from outside, each for a minute (needs a nightly toolchain and cargo-fuzz)
	set -e; for target in $$(ls fuzz/corpus); do \
	  mkdir -p fuzz/target/found/$$target; \
	  cargo +nightly fuzz run --dev $$target fuzz/target/found/$$target fuzz/corpus/$$target -- -max_total_time=60; \
	done

shell: programs ## Open a shell with kubectl in a cluster
	$(CLUSTER) shell

up: programs ## Boot a cluster and leave it running: the tests use it, too
	$(CLUSTER) up

down: ## End that cluster
	$(CLUSTER) down
