# What people type. Each target is one call; the scripts say what they do.
.PHONY: lab lab-down test check bench clean

lab: ## start the embedded lab, show that plain hosts fail, harden them, show that they pass and how one gets in
	@tools/setup.sh lab && .venv/bin/python tests/lab/story.py

lab-down: ## remove the lab
	@tools/setup.sh lab && .venv/bin/python tests/lab/lab.py down

test: ## everything: lint, unit, sanity, every scenario on both Debians, lab, installed collection, both ansible-cores
	@tools/setup.sh lab test && .venv/bin/python tools/test.py all

check: ## lint and unit tests, in less than a minute
	@tools/setup.sh lint && .venv/bin/python tools/test.py check

bench: ## ratios against peers, into docs/benchmarks.md
	@tools/setup.sh lab && .venv/bin/python tests/bench/bench.py

clean: lab-down ## remove what was made here: lab, logs, caches, tools (images stay)
	@rm -rf .cache .venv evidence
