# `make` lists what there is. Longer recipes are in scripts/.
.DEFAULT_GOAL := help
.PHONY: help setup needs up down status logs reset test check soak topologies mutations bench bench-full migrate schema

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  MODE=docker or MODE=native chooses how to run; otherwise Docker if an engine answers."

setup: ## Install what is missing (compiler, libpq, Postgres, Redis, curl; tools of `make check`)
	@scripts/setup check

# The same without the tools of `make check`.
needs:
	@scripts/setup

up: ## Run Postgres, Redis and both services; print their URLs (USER_SVC_PORT, DATA_SVC_PORT). REPLICAS=2 runs two of each behind HAProxy
	@scripts/stack up

down: ## Stop everything, keep the data
	@scripts/stack down

status: ## Show what runs, and where
	@scripts/stack status

logs: ## Show the last lines of all logs; FOLLOW=1 goes on
	@scripts/stack logs

reset: ## Stop everything and remove the data, after asking (YES=1 does not ask)
	@scripts/stack reset

test: needs ## Run all tests; they start what they need
	bash -c '. scripts/environment && exec cargo test --workspace'

check: setup ## What CI runs: all of scripts/check, or the steps in STEPS="format lints"
	@scripts/check $(STEPS)

soak: needs ## Record histories under faults until 10,000,000 reads (SOAK_READS) or an hour (SOAK_SECONDS)
	bash -c '. scripts/environment && exec cargo test -p data-svc --test history -- --nocapture --ignored --exact soak::no_promise_is_broken_for_as_long_as_a_soak_goes_on'

topologies: setup ## Record histories past one machine for minutes: behind HAProxy with a Redis that fails over, through PgBouncer with a standby that is promoted
	bash -c '. scripts/environment && exec cargo test --workspace -- --nocapture --ignored topologies::'

mutations: setup ## Break the protocol's rules one at a time, and see the tests fail
	@scripts/mutations

bench: needs ## Measure the services against a ceiling and peers: the main rows at 64 clients (about eight minutes)
	@scripts/bench main --seconds 1

bench-full: needs ## Measure everything, and write docs/benchmarks.md
	@scripts/bench full

migrate: needs ## Run pending migrations with the Diesel CLI, which also prints the schema
	@scripts/diesel migration run

schema: needs ## Print the schema of the database with the Diesel CLI
	@scripts/diesel print-schema
