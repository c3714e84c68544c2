"""A run repeated from its own record: it says "the same" of the same run, and of no other."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, Ended, end, start, train

script = importlib.import_module("experiments.rerun")
SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "rerun.py"


def rerun(*arguments: str | Path, cwd: Path) -> Ended:
    return end(start(*map(str, arguments), cwd=cwd, script=SCRIPT))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run out of a sweep: with evaluations, beside others."""
    cwd = tmp_path_factory.mktemp("trained")
    assert (
        train("-m", *SMALL, "seed=0,1,2", "eval.every=1", "eval.sequences=50", "optimizer.lr=0.3", cwd=cwd).status == 0
    )
    return next(
        path.parent
        for path in cwd.glob("runs/default/*/run.json")
        if json.loads(path.read_text())["config"]["seed"] == 1
    )


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def without_checksum(content: dict) -> dict:
    return {key: value for key, value in content.items() if key != "crc"}


def told(run: Path) -> dict:
    return without_checksum(json.loads((run / "run.json").read_text()))


def test_a_run_of_a_sweep_alone_is_the_same(run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = rerun(run.name, "--out", "again/1", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.endswith(", all the same\n")
    assert (tmp_path / "again" / "1" / "timesteps.f32").read_bytes() == before[run / "timesteps.f32"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    kept = rerun(run.name, "--out", "again/1", cwd=tmp_path)
    assert (kept.status, kept.out) == (2, "")
    assert kept.err == "rerun.py: again/1: File exists\n"


def test_one_bit_and_one_row_are_noticed(run, tmp_path):
    blocks = np.fromfile(run / "timesteps.f32", "<u4")
    blocks[len(blocks) // 2] ^= 1
    blocks.tofile(run / "timesteps.f32")
    rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    rows[2]["train/loss"] += 0.25
    (run / "steps.jsonl").write_text("".join(json.dumps(without_checksum(row)) + "\n" for row in rows))
    info = told(run)
    info["versions"]["torch"] = "1.0"
    del info["checked_from"]  # as of the time before checksums: those would notice first
    (run / "run.json").write_text(json.dumps(info))
    ended = rerun(run.name, cwd=tmp_path)
    assert (ended.status, ended.err) == (1, "")
    assert "torch: 1.0 then, " in ended.out
    table = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if "/" in line.split()[0]}
    table.pop(f"{run.name}:", None)
    loss = table.pop("train/loss")
    assert loss == ["4", "1", "0.25", "2"]
    [[numbers, differ, largest, _]] = table.values()
    assert (int(numbers), int(differ)) == (4 * 10, 1)
    assert 0 < float(largest) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


@pytest.mark.slow
def test_another_seed_is_not_the_same(run, tmp_path):
    info = told(run)
    info["config"]["seed"] = 7
    (run / "run.json").write_text(json.dumps(info))
    ended = rerun(run.name, cwd=tmp_path)
    assert ended.status == 1
    assert "train/loss" in ended.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "killed"}, "killed; only a completed or diverged run can be repeated"),
        ({"config": {"seed": "red"}}, "its config is none any more"),
        ({"config": {"colour": "red"}}, "colour"),
        ({"config": {"training": {"batch_size": 0}}}, "training.batch_size=0"),
        ({"format": 7}, "not a run.json of format 1"),
        (None, "run.json"),
    ],
)
def test_what_cannot_be_repeated_is_one_line(run, monkeypatch, capsys, change, message):
    monkeypatch.chdir(run.parent)
    info = told(run)
    if change is None:
        (run / "run.json").unlink()
    else:
        (run / "run.json").write_text(json.dumps(info | change))
    assert script.main([run.name, "--out", "again"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not Path("again").exists()
