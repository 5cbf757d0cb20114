# make demo and make test need nothing but Python 3.11 and PyPI. `PYTHON=python3.12 make install` names another Python.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: install demo evaluate-demo test lint bench reproduce reproduce-cpu compare pictures

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

# The three stages in under six minutes on two cores, on data that come with our packages: handwritten digits are heard,
# printed ones remembered. Stage three runs twice, with the published objective and with the sound-consistent one.

demo: install
	$(PY) train_vggish.py $(SMALL) --width 8 --epochs 10 --late-epoch 8 --learning-rate 1e-3
	$(PY) mnist_classify_train.py $(SMALL) --epochs 8 --late-epoch 7 --learning-rate 0.01 --judge-epochs 12
	$(PY) emnist_dcgan.py --dataset printed --width 16 --epochs 2 --images-per-epoch 4800 $(GAN)
	$(PY) train_all.py --name train_all_published --batch 32 --epochs 3
	$(PY) train_all.py --batch 32 --epochs 7 --joint-epochs 6 --joint-learning-rate 1e-3 $(CONSISTENT)

# An honest rating of both runs that `make demo` left, a page each to look at and to listen to, and all side by side.
evaluate-demo: install
	$(PY) evaluate.py
	$(PY) evaluate.py --second-thoughts 8
	$(PY) evaluate.py --name train_all_published
	$(PY) evaluate.py --compare results results/evaluation_second_thoughts results/evaluation_train_all_published

# What spares the GAN steps where the network is narrow; the published settings are the script's defaults.
GAN := --batch 32 --learning-rate 1e-3 --discriminator-learning-rate 2e-4 --instance-noise 0.5
CONSISTENT := --sound-consistency 1 --distance multiscale --loudness-first 0.8 --rehearsal 5 --detail 10 --grey 1 \
	--generator-rate 0.2 --no-dropout --augmentation 0.5 --classifier-augmentation 1

test: install
	$(PY) -m pytest
	@if command -v nvidia-smi >/dev/null; then $(PY) -m pytest -m gpu -n 0; fi

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# How fast: the translator, then each stage, beside other ways to do the same. On the GPU if there is one, else on the CPU.
bench: install
	$(PY) -m benchmarks.translator
	$(PY) -m benchmarks.stages

# The published schedule, then the sound-consistent objective on the same three first stages. For a GPU.
reproduce: install
	$(PY) train_vggish.py
	$(PY) mnist_classify_train.py
	$(PY) emnist_dcgan.py
	$(PY) train_all.py --name train_all_published
	$(PY) train_all.py --batch 32 --epochs 7 --joint-epochs 6 --joint-learning-rate 1e-3 $(CONSISTENT)
	$(PY) evaluate.py --name train_all_published
	$(PY) evaluate.py
	$(PY) evaluate.py --second-thoughts 8
	$(PY) controls.py

# The same on two cores: narrower networks, fewer epochs, larger learning rates. MEMORY names EMNIST's split and file.
MEMORY := --split mnist --file train
reproduce-cpu: install
	$(PY) train_vggish.py --width 16 --learning-rate 1e-3 --late-epoch 4
	$(PY) mnist_classify_train.py --rotation 10 --learning-rate 0.02 --epochs 14 --late-epoch 11 --judge-epochs 6
	$(PY) emnist_dcgan.py $(MEMORY) --width 32 --epochs 5 --images-per-epoch 6400 $(GAN)
	$(PY) train_all.py --name train_all_published --images-per-epoch 37500 --learning-rate 5e-4
	$(PY) train_all.py --batch 32 --images-per-epoch 15000 --epochs 10 --joint-epochs 9 --joint-learning-rate 1e-3 $(CONSISTENT)
	$(PY) evaluate.py --name train_all_published
	$(PY) evaluate.py
	$(PY) evaluate.py --second-thoughts 8
	$(PY) controls.py

# The machine rates encodings on two cores, quickly: four of them, or `make compare ONLY=` all of the script's header.
ONLY := primary tanh bottom linear
compare: install
	$(PY) compare_encodings.py --quick $(MEMORY) --only $(ONLY)

pictures: install
	$(PY) -m ims.draw
