# make demo and make test need nothing but Python 3.11 and PyPI. `PYTHON=python3.12 make install` names another Python.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: install demo test lint reproduce reproduce-cpu pictures

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

# The three stages in a few minutes on two cores, on data that come with our packages: handwritten digits are heard, printed
# ones remembered. Stage three runs twice, with the published objective and with the sound-consistent one.
HEARD := --dataset handwritten
demo: install
	$(PY) train_vggish.py $(HEARD) --width 8 --epochs 14 --late-epoch 11 --batch 32 --learning-rate 1e-3
	$(PY) mnist_classify_train.py $(HEARD) --epochs 8 --late-epoch 7 --batch 32 --learning-rate 0.01 --judge-epochs 16
	$(PY) emnist_dcgan.py --dataset printed --width 16 --epochs 3
	$(PY) train_all.py --name train_all_published --epochs 3 --batch 32
	$(PY) train_all.py --sound-consistency 1 --epochs 8 --joint-epochs 7 --joint-learning-rate 1e-3 --batch 32

test: install
	$(PY) -m pytest

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# The published schedule, then the sound-consistent objective on the same three first stages. For a GPU.
reproduce: install
	$(PY) train_vggish.py
	$(PY) mnist_classify_train.py
	$(PY) emnist_dcgan.py
	$(PY) train_all.py --name train_all_published
	$(PY) train_all.py --sound-consistency 1 --joint-epochs 3 --joint-learning-rate 2e-4
