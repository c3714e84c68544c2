"""A program and its records: each run's is what it would be alone, however the others end."""

from types import SimpleNamespace

import pytest
from oracle import make_config

from rnn_lab.runner import Job, run_program


def recorded(directory, values: list[dict]) -> tuple[list[dict[str, bytes]], list[str], int]:
    """Of one program: the files of each run's rows, how it ended, and the updates that were counted."""
    common = {
        "task.length": 10,
        "model.hidden": 50,
        "training.updates": 60,
        "training.log_every": 5,
        "tracker.name": "none",
    }
    jobs, counted = [], []
    for number, own in enumerate(values):
        (directory / str(number)).mkdir(parents=True)
        jobs.append(Job(make_config(common | own), directory / str(number), {}))
    progress = SimpleNamespace(advance=lambda updates, diverged: counted.append(updates))
    outcomes = run_program(jobs, progress, 1e9)  # type: ignore[arg-type]
    files = [
        {path.name: path.read_bytes() for path in job.directory.iterdir() if path.suffix in (".jsonl", ".f32")}
        for job in jobs
    ]
    return files, [outcome.status for outcome in outcomes], sum(counted)


@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_a_program_goes_on_without_the_runs_that_have_ended(tmp_path, kernel):
    """One explodes at its first update, one later; every update counts as done, also those that they are spared."""
    lr = (0.01, 1e38, 0.05, 300.0, 0.02)
    values = [{"seed": seed, "optimizer.lr": own, "training.kernel": kernel} for seed, own in enumerate(lr)]
    values = [v | {"model.activation": "linear", "init.scale": 0.5} for v in values]
    together, how, updates = recorded(tmp_path / "together", values)
    assert how == ["completed", "diverged", "completed", "diverged", "completed"]
    assert updates == 5 * 60
    for number, own in enumerate(values):
        [alone], _, _ = recorded(tmp_path / f"alone{number}", [own])
        assert alone
        assert together[number] == alone
