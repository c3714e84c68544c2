"""A checkpoint gives back every bit of a state, or nothing and one warning."""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import make_config

from rnn_lab import checkpoints
from rnn_lab.config import run_id
from rnn_lab.recording import Row, store
from rnn_lab.recording.store import StoreSink
from rnn_lab.runner import Job
from rnn_lab.training import Training

CONFIG = make_config(
    {"task.length": 10, "model.hidden": 5, "training.updates": 40, "clip.name": "autoclip", "optimizer.name": "adam"}
)
STEP = 7


def row(job: Job, step: int) -> Row:
    described = job.describe()
    return Row(step, {"train/loss": 1.5}, dict.fromkeys(described["series"], np.full((1, described["T"]), step, "f4")))


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Job, dict[str, Any]]:
    """A run that was killed after 3 rows and 7 updates, and its state then."""
    checkpoints.warn.cache_clear()
    job = Job(CONFIG, tmp_path, {})
    training = Training([CONFIG])
    for _ in range(STEP):
        list(training.advance())
    [state] = training.state()
    store = StoreSink(job.info, job.describe())
    for step in range(3):
        store.log(row(job, step))
    checkpoints.save(tmp_path, run_id(CONFIG), state, store.progress())
    store.finish("killed", {})
    return job, state


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_every_bit_of_a_state_comes_back(killed, caplog):
    """Parameters, optimiser, AutoClip's norms, the generator's 128-bit integers."""
    job, state = killed
    beginning = job.beginning()
    assert beginning.step == STEP
    assert equal(beginning.state, state)
    assert beginning.since is not None
    assert beginning.since["rows"] == 3
    assert not caplog.records
    assert state["norms"]
    assert [p.name for p in job.directory.glob("*checkpoint*")] == ["checkpoint.pt"]


def test_it_is_a_plain_torch_file(killed):
    job, state = killed
    content = torch.load(job.directory / "checkpoint.pt", weights_only=True)
    assert content["run_id"] == run_id(CONFIG)
    assert equal(content["state"], state)


class Bomb:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def cut(fraction: float) -> Any:
    return lambda file: file.write_bytes(file.read_bytes()[: int(fraction * file.stat().st_size)])


def altered(**changes: Any) -> Any:
    return lambda file: torch.save(torch.load(file, weights_only=True) | changes, file)


DAMAGE = {
    "empty": cut(0),
    "half": cut(0.5),
    "all but the end": cut(0.99),
    "text": lambda file: file.write_text("step 7\n"),
    "another torch file": lambda file: torch.save([1, 2], file),
    "a later format": altered(format=2),
    "other numbers": altered(state={"step": 3}),
    "another run": altered(run_id="0123456789"),
    "no checksum": altered(checksum=None),
    "code": lambda file: file.write_bytes(pickle.dumps(Bomb())),
    "rows missing": lambda file: (file.parent / "steps.jsonl").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_not_used_and_one_line_says_so(killed, caplog, damage, monkeypatch, tmp_path):
    job, _ = killed
    monkeypatch.chdir(tmp_path)
    DAMAGE[damage](job.directory / "checkpoint.pt")
    with caplog.at_level(logging.WARNING):
        assert job.beginning() == (None, {})
        job.beginning()
    [told] = caplog.records
    assert str(job.directory / "checkpoint.pt") in told.getMessage()
    assert "\n" not in told.getMessage()
    assert not Path("exploded").exists()


def test_no_flipped_bit_is_taken_for_a_state(killed):
    """Wherever it is: either the state is what it was, to the bit, or there is none."""
    rng, (job, state) = np.random.default_rng(0), killed
    file = job.directory / "checkpoint.pt"
    whole, refused = file.read_bytes(), 0
    for at in rng.integers(len(whole), size=150):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        found = job.beginning().state
        refused += found is None
        assert found is None or equal(found, state), at
    assert refused > 50


def test_another_runs_checkpoint_is_foreign(killed, caplog):
    job, state = killed
    checkpoints.save(job.directory, "0123456789", state, {"rows": 3})
    assert job.beginning().state is None
    assert "0123456789" in caplog.text


@pytest.mark.parametrize(("status", "since"), [("failed", None), ("killed", {}), ("running", {})])
def test_who_starts_again_and_keeps_its_rows(killed, status, since):
    """A failed run starts from nothing; a killed one without a checkpoint measures again what it has kept."""
    job, _ = killed
    (job.directory / "checkpoint.pt").unlink()
    record = (store.read_run(job.directory) or {}) | {"status": status, "goes_on": status != "failed"}
    store.write_json(job.directory / "run.json", record)
    assert job.beginning() == (None, since)


def test_rows_of_another_shape_are_not_gone_on_with(killed):
    """A record that other code wrote, with other series."""
    job, _ = killed
    record = store.read_run(job.directory) or {}
    series = [name.replace("h/norm", "h/other") for name in record["series"]]
    store.write_json(job.directory / "run.json", record | {"series": series})
    assert job.beginning() == (None, None)
