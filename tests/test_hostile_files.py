"""Run directories that somebody else wrote, or a disk spoiled: every reader takes them or says in one line which file is wrong."""

import importlib
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, some, train

from rnn_lab import results
from rnn_lab.recording.status import NoSweep, status

rerun = importlib.import_module("experiments.rerun")
Damage = Callable[[Path, Path], object]  # done to a sweep and one of its runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("trained")
    assert train("-m", *SMALL, "seed=0,1", "probe.contributions_every=1", cwd=cwd).status == 0
    return cwd / "runs" / "default"


JUNK = {
    "nothing": b"",
    "zeros": bytes(50),
    "noise": random.Random(1).randbytes(300),
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "UTF-16": "é".encode("utf-16"),
    "null": b"null\n",
    "a list": b"[]\n",
    "an object": b"{}\n",
    "beyond float64": b"1e400\n",
    "step NaN": b'{"step": NaN}\n{"step": 1}\n',
    "a step of 41 digits": b'{"step": 1' + b"0" * 40 + b"}\n",
    "a step of 5000 digits": b'{"step": ' + b"1" * 5000 + b"}\n",
    "negative": b'{"step": -1, "T": -5}\n',
    "a huge T": b'{"step": 0, "T": 999999999999999999}\n',
    "a step that is text": b'{"step": "0"}\n',
    "a step that is true": b'{"step": true, "T": true}\n',
    "T 1.5": b'{"step": 0, "T": 1.5}\n',
}
RECORD: dict[str, dict[str, Any]] = {  # what a run.json may say instead
    "config": {"none": None, "a list": [], "empty": {}, "no keys": {"training": "x"}, "updates": {"training": {"updates": "x"}},
               "columns of ours": {"run_id": "x", "status": "y", "path": "z"}, "a target": {"_target_": "os.system"},
               "an interpolation": {"sweep": "${oc.env:HOME}"}, "dots": {"seed": {"a": {"b": 1}}, "task.length": 3}},
    "T": {"0": 0, "-1": -1, "10^18": 10**18, "10^30": 10**30},
    "layers": {"-1": -1, "10^12": 10**12, "true": True},
    "series": {"numbers": [1, 2], "lists": [[1]] * 6, "none": [], "twice": ["a"] * 6,
               "index": ["step", "layer", "t", "lag", "run_id", "T"]},
    "run_id": {"a path": "../../x", "a script": "<script>alert(1)</script>", "empty": "", "half a character": "\ud800"},
    "sweep": {"an object": {"a": 1}, "half a character": "\udcff", "a path": "../x"},
    "name": {"a list": ["x"], "control characters": "\x1b[31m\0\n"},
    "baseline": {"a list": [1], "text": {"loss": "x", "error": {}}},
    "git": {"text": "x", "a list": [1]},
    "command": {"a list": ["x"]},
    "seconds": {"text": "x"},
    "diverged_at": {"text": "x"},
    "status": {"unknown": "x", "a list": []},
    "resumed": {"text": "xy"},
    "summary": {"a list": [1], "text": {"train/loss": "x"}},
    "rows": {"text": "x", "10^30": 10**30},
    "checked_from": {"text": "x"},
    "format": {"true": True, "2": 2},
}  # fmt: skip


def put(name: str, content: bytes) -> Damage:
    return lambda sweep, run: ((sweep if name.endswith("parquet") else run) / name).write_bytes(content)


def says(key: str, value: Any) -> Damage:
    return lambda sweep, run: (run / "run.json").write_text(json.dumps(_record(run) | {key: value}))


def without_checksums(name: str, content: bytes) -> Damage:
    """As an earlier version wrote it."""

    def damage(sweep: Path, run: Path) -> None:
        record = {key: value for key, value in _record(run).items() if key not in ("checked_from", "rows")}
        (run / "run.json").write_text(json.dumps(record))
        (run / name).write_bytes(content)

    return damage


def folder_instead(name: str) -> Damage:
    def damage(sweep: Path, run: Path) -> None:
        file = (sweep if name.endswith("parquet") else run) / name
        file.unlink(missing_ok=True)
        file.mkdir()

    return damage


def loop(name: str) -> Damage:
    """A link to itself."""

    def damage(sweep: Path, run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(name)

    return damage


def _record(run: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads((run / "run.json").read_text()).items() if key != "crc"}


BINARY = ("timesteps.f32", "steps.parquet", "timesteps.parquet", "contributions/1.npy")
DAMAGES: dict[str, Damage] = {
    **{f"{name}: {what}": put(name, junk) for name in ("run.json", "steps.jsonl") for what, junk in JUNK.items()},
    **{f"{name}: {what}": put(name, JUNK[what]) for name in BINARY for what in ("nothing", "noise", "deep lists")},
    **{f"{key}: {what}": says(key, value) for key, values in RECORD.items() for what, value in values.items()},
    **{f"steps.jsonl without checksums: {what}": without_checksums("steps.jsonl", junk) for what, junk in JUNK.items()},
    "blocks without checksums": without_checksums("timesteps.f32", b"abcde" * 7),
    **{f"{name}: a folder": folder_instead(name) for name in ("run.json", "steps.jsonl", *BINARY)},
    **{f"{name}: a loop": loop(name) for name in ("run.json", "steps.jsonl", "timesteps.f32")},
}


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Iterator[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what load warns of is told in test_results
        yield Path(shutil.copytree(trained, tmp_path / "default"))


def one_line(read: Callable[[], object], *refusals: type[Exception]) -> None:
    """Either it can be read, or what is said names the path, in one line."""
    said = ""
    try:
        read()
    except refusals as error:
        said = str(error)
    assert len(said) < 1000
    assert "\n" not in said


@pytest.mark.parametrize("damage", some(DAMAGES, 13))
def test_readers_take_it_or_name_it(sweep, damage):
    run = min(path.parent for path in sweep.glob("*/run.json"))
    DAMAGES[damage](sweep, run)
    one_line(lambda: results.load(sweep), results.ResultsError)
    one_line(lambda: results.load(run), results.ResultsError)
    one_line(lambda: results.contributions(run), results.ResultsError)
    one_line(lambda: status(sweep), NoSweep)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_page_and_rerun_take_it_or_leave_with_one_line(sweep, damage, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "analysis"))
    report = importlib.import_module("report")
    run = min(path.parent for path in sweep.glob("*/run.json"))
    DAMAGES[damage](sweep, run)
    for program in (
        lambda: report.main([str(sweep), "--out", str(sweep / "page.html")]),
        lambda: rerun.main([str(run)]),
    ):
        capsys.readouterr()
        left = program()
        said = capsys.readouterr().err
        assert left in (0, 1, 2)
        assert left != 2 or said.count("\n") == 1, said
    assert not (sweep / "page.html").exists() or "<script>alert" not in (sweep / "page.html").read_text()


@pytest.mark.parametrize("name", some(["ünï code #?%&=;'" * 3, "with space", "-dash", "a" * 200], 4))
def test_any_folder_will_do(trained, tmp_path, name):
    """Names that shells, URLs and patterns treat specially, and paths of over 1,000 characters."""
    deep = tmp_path / name / name / name / name / name
    deep.mkdir(parents=True)
    ended = train(*SMALL, cwd=deep)
    assert (ended.status, ended.err) == (0, "")
    assert train(*SMALL, cwd=deep).out.endswith("completed already; nothing to do\n")
    moved = Path(shutil.copytree(trained, deep / "moved"))
    assert len(results.load([deep / "runs" / "default", moved]).runs) == 3


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file in its place")
    for arguments in (SMALL, ["-m", *SMALL, "seed=0,1"]):
        ended = train(*arguments, cwd=tmp_path)
        assert ended.status in (1, 2)
        assert "Traceback" not in ended.err
        assert "runs" in ended.err
    assert (tmp_path / "runs").read_text() == "a file in its place"


def test_the_path_of_the_command_may_be_any_bytes(tmp_path, monkeypatch):
    """An argument that is no UTF-8 is recorded readably."""
    from rnn_lab.provenance import provenance

    monkeypatch.setattr(sys, "argv", ["train.py", "sweep=\udcff"])
    assert "?" in provenance.__wrapped__()["command"].encode().decode()
