# `make` lists the targets. `PYTHON=python3.12 make install` names another Python than python3.
# The exact versions of requirements-lock.txt are installed; `make install CONSTRAINTS=` takes the newest ones.
PYTHON ?= python3
CONSTRAINTS ?= -c requirements-lock.txt
PY := .venv/bin/python
CONSISTENT := train_all_sound_consistent

.PHONY: help install install-dev demo evaluate-demo test lint types bench reproduce reproduce-small compare listening app pictures

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: .venv/installed ## make .venv with what the scripts need
install-dev: .venv/installed-dev ## the same, and what the tests and checks need

.venv/installed .venv/installed-dev: requirements.txt requirements-dev.txt requirements-lock.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet $(CONSTRAINTS) -r requirements$(@:.venv/installed%=%).txt
	touch $@

demo: install ## all three stages on data that need no download, in minutes on two cores
	$(PY) train_vggish.py demo
	$(PY) mnist_classify_train.py demo
	$(PY) emnist_dcgan.py demo
	$(PY) train_all.py demo
	$(PY) train_all.py sound-consistent

evaluate-demo: install ## rate both runs that `make demo` or `make reproduce` left
	$(PY) evaluate.py --name train_all
	$(PY) evaluate.py --name $(CONSISTENT)
	$(PY) evaluate.py --name $(CONSISTENT) --refine-steps 8
	$(PY) evaluate.py --compare $(addprefix results/,train_all $(CONSISTENT) $(CONSISTENT)/evaluation_refined)

test: install-dev ## all tests; on a machine with a GPU also those for it
	$(PY) -m pytest
	@if command -v nvidia-smi >/dev/null; then $(PY) -m pytest -m gpu -n 0; fi

lint: install-dev ## ruff, and its format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: install-dev ## pyright
	.venv/bin/pyright

bench: install ## how fast: the translator, then a step of every stage
	$(PY) -m benchmarks.translator
	$(PY) -m benchmarks.stages

reproduce: install ## the published schedule and the sound-consistent objective, rated; for a GPU
	$(PY) train_vggish.py published
	$(PY) mnist_classify_train.py published
	$(PY) emnist_dcgan.py published $(EMNIST)
	$(PY) train_all.py published
	$(PY) train_all.py sound-consistent
	$(MAKE) evaluate-demo
	$(PY) evaluate.py --name $(CONSISTENT) --controls

reproduce-small: install ## the same, narrower and shorter; for two cores. EMNIST= takes flags of emnist_dcgan.py
	$(PY) train_vggish.py small
	$(PY) mnist_classify_train.py small
	$(PY) emnist_dcgan.py small $(EMNIST)
	$(PY) train_all.py small
	$(PY) train_all.py small-sound-consistent
	$(MAKE) evaluate-demo
	$(PY) evaluate.py --name $(CONSISTENT) --controls

compare: install ## rate encodings, quickly; for two cores. EMNIST= as above
	$(PY) compare_encodings.py small $(EMNIST)

listening: install node_modules ## the page of a listening test for people, on data that need no download
	$(PY) listening_test.py demo

node_modules: package.json package-lock.json
	npm ci --no-audit --no-fund
	touch $@

app: .venv-app/installed ## draw, hear, see: a local page. Without a run it makes the demo first
	@ls results/train_all*/metrics.json >/dev/null 2>&1 || $(MAKE) demo
	.venv-app/bin/python app.py

# gradio needs an older Pillow than the lock has. So it has its own environment, which finds the rest in .venv.
SITE = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
.venv-app/installed: requirements-app.txt | .venv/installed
	$(PY) -m venv .venv-app
	$(PY) $(SITE) > $$(.venv-app/bin/python $(SITE))/venv.pth
	.venv-app/bin/python -m pip install --quiet -r requirements-app.txt
	touch $@

pictures: install ## draw the pictures in ims/ from results/
	$(PY) -m tools.draw_readme
