# Everything runs in .venv, built from requirements.lock and requirements-torch.txt. PIP_* variables pass through to pip.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SWEEP := runs/vanishing_exploding

.PHONY: demo test test-slow test-all faults lint audit bench figures clean soak

demo: .venv
	$(BIN)/python experiments/train.py experiment=vanishing_exploding
	$(BIN)/python analysis/gradient_flow.py $(SWEEP)
	$(BIN)/python analysis/training_curves.py $(SWEEP)
	$(BIN)/python analysis/report.py $(SWEEP)
	@echo
	@echo "Figures:     $(SWEEP)/figures/gradient_flow.pdf and training_curves.pdf (.png, .svg, .csv)"
	@echo "A page:      $(SWEEP)/report.html                                all runs and figures in one file, for any browser"
	@echo "Dashboards:  $(BIN)/wandb leet $(SWEEP)/wandb                  in this terminal, offline"
	@echo "             $(BIN)/wandb sync $(SWEEP)/wandb/offline-run-*    to your W&B account"

test: .venv
	$(BIN)/python -m pytest -n 2

test-all: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dashboards,music,optuna,ray,slurm]'
	$(BIN)/python -m pytest -n 2 -m ""

# What takes minutes each is left to test-all; what needs Slurm, Chromium or tmux is skipped where that is not installed.
test-slow: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dashboards,optuna,ray,slurm]'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "(slow or slurm or browser) and not long"

faults: .venv
	$(BIN)/python tests/faults.py --faults 300

soak: .venv
	$(BIN)/python tests/soak.py

lint: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# Known vulnerabilities of the locked versions; asks the package index, and fails where it does not answer.
audit: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r requirements-torch.txt

# Everything that takes minutes, a quarter of an hour in all; what is trained already is not trained again.
figures: demo
	$(BIN)/python experiments/bifurcation.py
	$(BIN)/python experiments/error_surface.py
	$(BIN)/python experiments/lyapunov.py
	$(BIN)/python analysis/lyapunov.py runs/lyapunov
	$(BIN)/python experiments/phase_diagram.py sigmoid
	$(BIN)/python analysis/phase_diagram.py runs/phase_diagram_sigmoid
	for experiment in gradient_curves contributions memory; do \
		$(BIN)/python experiments/train.py experiment=$$experiment && $(BIN)/python analysis/$$experiment.py runs/$$experiment || exit 1; done
	$(BIN)/python experiments/train.py experiment=exponents
	$(BIN)/python analysis/training_curves.py runs/exponents
	$(BIN)/python experiments/train.py experiment=remedies
	$(BIN)/python analysis/remedies.py runs/remedies
	$(BIN)/python analysis/clipping.py runs/remedies --where regularizer.name=none
	$(BIN)/python experiments/train.py experiment=success_rate_minutes
	$(BIN)/python analysis/success_rate.py runs/success_rate_minutes
	for experiment in pathological_minutes characters_minutes; do \
		$(BIN)/python experiments/train.py experiment=$$experiment && $(BIN)/python analysis/tables.py runs/$$experiment || exit 1; done
	@if $(BIN)/python -c "import music21" 2> /dev/null; \
		then $(BIN)/python experiments/train.py experiment=music_minutes && $(BIN)/python analysis/tables.py runs/characters_minutes runs/music_minutes; \
		else echo "Not made: the table of polyphonic music, which needs $(BIN)/pip install '.[music]'"; fi

bench: .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python experiments/benchmark.py

.venv: .venv/installed
.venv/installed: requirements.lock requirements-torch.txt pyproject.toml
	@echo "Installing the packages of requirements.lock into .venv (one or two minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv
