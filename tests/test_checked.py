"""No flipped bit and no cut of a finished run's files is loaded as if it were whole, and the same command makes it whole again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, train

from rnn_lab import results
from rnn_lab.config import from_container
from rnn_lab.executors.work import train as train_program
from rnn_lab.jobs import finished
from rnn_lab.recording import checked
from rnn_lab.recording.runs import damage
from rnn_lab.runner import Job, Recorder

RUN = [*SMALL, "probe.contributions_every=1", "eval.every=3", "eval.sequences=20"]
FILES = ("run.json", "steps.jsonl", "timesteps.f32", "contributions/2.npy")
MOMENTARY = ["path", "seconds", "cpu_seconds", "started", "finished", "command"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("trained")
    assert train(*RUN, cwd=cwd).status == 0
    return next(cwd.glob("runs/default/*/run.json")).parent


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "default" / trained.name))


def everything(run: Path) -> list:
    """What can be loaded of a run."""
    loaded = results.load(run)
    sums = [results.contributions(run, step).log10_norm["W"] for step in loaded.steps["step"]]
    return [loaded.runs.drop(columns="path"), loaded.steps, loaded.timesteps, sums]


def same(one: list, other: list) -> bool:
    return all(a.equals(b) for a, b in zip(one[:3], other[:3], strict=True)) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(one[3], other[3], strict=True)
    )


def refusal(run: Path, whole: list) -> str | None:
    """What is said instead of what was there; None if that is loaded."""
    try:
        assert same(everything(run), whole)
    except results.ResultsError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_what_was_harmed_is_told_by_name_or_nothing_is_lost(run, name, harm):
    """Wherever: either every number is what it was, or one line names the file."""
    file, whole, rng = run / name, everything(run), np.random.default_rng(0)
    content, told = file.read_bytes(), 0
    for at in sorted(set(rng.integers(len(content), size=120).tolist())):
        harmed = bytearray(content)
        harmed[at] ^= 1 << rng.integers(8)
        file.write_bytes(harmed if harm == "flip" else content[:at])
        told += (said := refusal(run, whole)) is not None
        assert said is None or (str(file) in said and "\n" not in said)
    assert told > 80
    file.write_bytes(content)
    assert same(everything(run), whole)


@pytest.mark.parametrize("name", FILES)
def test_the_same_command_makes_a_harmed_run_whole(run, tmp_path, name):
    before = {file: file.read_bytes() for file in run.rglob("*.[jnf]*") if file.is_file() and file.name != "run.json"}
    harmed = bytearray((run / name).read_bytes())
    harmed[len(harmed) // 2] ^= 4
    (run / name).write_bytes(harmed)
    assert damage(run) is not None
    ended = train(*RUN, cwd=tmp_path)
    assert ended.status == 0
    assert name == "run.json" or str(Path("runs") / "default" / run.name / name) in ended.err
    assert {file: file.read_bytes() for file in before} == before
    assert damage(run) is None
    assert "already; nothing to do" in train(*RUN, cwd=tmp_path).out


def test_what_an_earlier_version_wrote_has_no_checksums_and_is_read(run):
    """As it was before there were any."""
    whole = everything(run)
    text = b"".join(map(checked.bare, (run / "steps.jsonl").read_bytes().splitlines(keepends=True)))
    (run / "steps.jsonl").write_bytes(text)
    with pytest.raises(results.ResultsError, match=r"steps\.jsonl:1"):
        results.load(run)  # it says that they must be there
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(
        json.dumps({k: v for k, v in info.items() if k not in ("crc", "rows", "checked_from")})
    )
    for file in (run / "contributions").iterdir():
        file.write_bytes(file.read_bytes()[:-4])
    assert same(everything(run), whole)


def test_a_harmed_run_that_a_worker_gets_is_measured_anew(run):
    """A worker leaves alone what has ended, as finished by an earlier attempt, unless its driver has found it damaged."""
    config = from_container(json.loads((run / "run.json").read_text())["config"])
    job, before = Job(config, run, {}), (run / "steps.jsonl").read_bytes()
    (run / "steps.jsonl").write_bytes(before.replace(b"train/loss", b"train/lost", 1))
    assert finished(run) is None
    [outcome] = train_program([job], 30.0)
    assert outcome.status == "completed"
    assert (run / "steps.jsonl").read_bytes() == before


def test_what_is_whole_in_a_harmed_run_is_kept_while_the_rest_is_measured_anew(run):
    """So that whoever kills that loses no row that was there."""
    config = from_container(json.loads((run / "run.json").read_text())["config"])
    lines = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (run / "steps.jsonl").write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"train/loss", b"train/lost")]))
    assert finished(run) is None
    job = Job(config, run, {})
    recorder = Recorder(job, job.beginning())
    assert (run / "steps.jsonl").read_bytes() == b"".join(lines[:-1])
    recorder.finish("killed")
