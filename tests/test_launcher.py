"""Sweeps: one program of many runs, and every run as if it were alone. Each command is a process of its own."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import ENVIRONMENT, SMALL, TRAIN, end, start, train
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from rnn_lab import app, launcher, results
from rnn_lab.config import run_id, typed
from rnn_lab.recording.store import lock, read_run, write_json

CONF = Path(__file__).resolve().parents[1] / "conf"
RECORDED = ("steps.jsonl", "timesteps.f32")
SWEEP = ["-m", *SMALL, "seed=0,1", "clip=none,norm", "clip.threshold=1,2"]  # 8 jobs; without clipping 2 pairs coincide
SIX = 6


def runs_of(cwd: Path, sweep: str = "default") -> dict[str, Path]:
    return {p.name: p for p in sorted((cwd / "runs" / sweep).iterdir()) if p.is_dir() and p.name != "wandb"}


def told(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def recorded(cwd: Path) -> dict[tuple[str, str], bytes]:
    """All that was measured, by run and file."""
    return {(name, file): (run / file).read_bytes() for name, run in runs_of(cwd).items() for file in RECORDED}


def times(cwd: Path) -> dict[Path, int]:
    """When each file of a run was last written."""
    return {p: p.stat().st_mtime_ns for run in runs_of(cwd).values() for p in run.rglob("*")}


# -------------------- a sweep, done once


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep has run. Copy it to change it."""
    cwd = tmp_path_factory.mktemp("swept")
    ended = train(*SWEEP, cwd=cwd)
    assert (ended.status, ended.err) == (0, "")
    assert f"8 jobs, {SIX} runs, 0 of them finished before" in ended.out
    assert f"{SIX} completed" in ended.out
    return cwd


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(swept, tmp_path / "copied")


def test_each_run_has_a_directory_of_its_own(swept):
    """Named by its id, holding Hydra's files, which compose to that very run, and ours."""
    runs = runs_of(swept)
    assert len(runs) == SIX
    for name, run in runs.items():
        assert sorted(p.name for p in run.iterdir()) == [
            ".hydra",
            "run.json",
            "steps.jsonl",
            "timesteps.f32",
            "train.log",
        ]
        assert sorted(p.name for p in (run / ".hydra").iterdir()) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
        composed = OmegaConf.load(run / ".hydra" / "config.yaml")
        assert isinstance(composed, DictConfig)
        config = typed(composed)
        assert run_id(config) == name == told(run)["run_id"]
        hydra = OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra
        assert Path(hydra.runtime.output_dir) == run
        assert set(OmegaConf.load(run / ".hydra" / "overrides.yaml")) == set(hydra.overrides.task)
        assert f"seed={config.seed}" in hydra.overrides.task
    assert (swept / "runs" / "default" / "multirun.yaml").is_file()


def test_hydra_writes_what_it_writes_under_its_own_launcher(tmp_path):
    """.hydra/ byte for byte, but for the launcher itself and where all is."""

    def written(name: str) -> dict[Path, str]:
        cwd = tmp_path / name
        cwd.mkdir()
        assert train("-m", *SMALL, "seed=0,1", "clip=norm", f"hydra/launcher={name}", cwd=cwd).status == 0
        texts = {file.relative_to(cwd): file.read_text() for file in cwd.glob("runs/default/*/.hydra/*")}
        launcher_and_place = rf"^  launcher:\n(?:    .*\n)+|{cwd}|(?<=hydra/launcher[=:]) ?{name}"
        return {file: re.sub(launcher_and_place, "", text, flags=re.MULTILINE) for file, text in texts.items()}

    theirs, ours = written("basic"), written("vectorized")
    assert len(theirs) == 6
    assert ours == theirs


def test_a_sweep_in_several_waves_is_the_same_sweep(swept, tmp_path):
    """So many jobs begin that what waits fits into memory; neither results nor what Hydra writes, job numbers included, show it."""
    script = tmp_path / "waves.py"
    script.write_text(
        "import runpy, sys\nfrom rnn_lab import launcher\nlauncher.WAVE = 4\n"
        f"sys.argv[0] = {str(TRAIN)!r}\nrunpy.run_path({str(TRAIN)!r}, run_name='__main__')\n"
    )
    ended = end(start(*SWEEP, cwd=tmp_path, script=script))
    assert (ended.status, ended.err) == (0, "")
    assert f"{SIX} completed" in ended.out
    assert recorded(tmp_path) == recorded(swept)
    for name, run in runs_of(tmp_path).items():
        for file in (run / ".hydra").iterdir():
            theirs = runs_of(swept)[name] / ".hydra" / file.name
            assert file.read_text().replace(str(tmp_path), str(swept)) == theirs.read_text(), file


def test_each_run_tells_what_it_was_and_how_it_ended(swept):
    loaded = results.load(swept / "runs" / "default")
    assert set(loaded.runs["status"]) == {"completed"}
    assert sorted(loaded.runs["seed"]) == [0] * 3 + [1] * 3
    assert sorted(zip(loaded.runs["clip.name"], loaded.runs["seed"], strict=True)) == [
        (clip, seed) for clip, seed in [("none", 0), ("none", 1), ("norm", 0), ("norm", 0), ("norm", 1), ("norm", 1)]
    ]
    assert loaded.steps.groupby("run_id")["step"].apply(list).to_list() == [[0, 1, 2, 3]] * SIX
    for run in runs_of(swept).values():
        content = told(run)
        assert content["command"].endswith(" ".join(SWEEP))
        assert content["config"]["sweep"] == "default"


def test_the_same_command_again_repeats_nothing(copied):
    before = times(copied)
    ended = train(*SWEEP, cwd=copied)
    assert (ended.status, ended.err) == (0, "")
    assert f"{SIX} of them finished before" in ended.out
    assert times(copied) == before


def test_a_finished_sweep_is_collected(copied):
    """Into two Parquet files, whose numbers are those of the runs; they follow when the sweep grows."""
    sweep = copied / "runs" / "default"
    assert train(*SWEEP, "seed=2", cwd=copied).status == 0
    frames = results.load(sweep)
    for name, frame in (("steps", frames.steps), ("timesteps", frames.timesteps)):
        held = pd.read_parquet(sweep / f"{name}.parquet")
        assert held["run_id"].nunique() == SIX + SIX // 2
        both = frame.columns.intersection(held.columns)
        pd.testing.assert_frame_equal(held[both], frame[both], check_dtype=False)


def test_a_single_run_is_the_sweeps_run(copied):
    """The same id without -m: what the sweep has finished is not run again, and .hydra/ is not touched."""
    before = times(copied)
    ended = train(*SMALL, "clip=norm", "clip.threshold=2.0", "seed=1", cwd=copied)
    assert (ended.status, ended.err) == (0, "")
    assert "completed already" in ended.out
    assert times(copied) == before


def test_a_single_run_that_another_process_trains_is_refused(copied):
    """One line, and nothing of the other's is touched."""
    run = next(run for run in runs_of(copied).values() if told(run)["config"]["seed"] == 1)
    content = told(run)
    (run / "run.json").write_text(json.dumps(content | {"status": "running"}))
    before, held = times(copied), lock(run)
    clip = content["config"]["clip"]
    ended = train(*SMALL, f"clip={clip['name']}", f"clip.threshold={clip['threshold']}", "seed=1", cwd=copied)
    os.close(held)
    assert (ended.status, ended.out) == (2, "")
    assert "another process" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert times(copied) == before


def test_a_wider_sweep_runs_what_is_new(copied):
    before = times(copied)
    ended = train(*SWEEP, "seed=0,1,2", cwd=copied)
    assert (ended.status, ended.err) == (0, "")
    assert "12 jobs, 9 runs, 6 of them finished before" in ended.out
    assert before.items() <= times(copied).items()
    assert len(runs_of(copied)) == 9


def test_a_sweep_has_the_name_it_is_given(tmp_path):
    assert train("-m", *SMALL, "sweep=named", "seed=0,1", cwd=tmp_path).status == 0
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["named"]
    assert len(runs_of(tmp_path, "named")) == 2
    assert (tmp_path / "runs" / "named" / "multirun.yaml").is_file()


def test_results_do_not_depend_on_the_size_of_programs(swept, tmp_path):
    assert train(*SWEEP, "hydra.launcher.max_runs=1", cwd=tmp_path).status == 0
    assert recorded(tmp_path) == recorded(swept)


@pytest.mark.slow
def test_hydras_own_sweeper_works_as_well(swept, tmp_path):
    """hydra/sweeper=basic does not know that jobs coincide, and need not."""
    ended = train(*SWEEP, "hydra/sweeper=basic", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert recorded(tmp_path) == recorded(swept)


def test_a_run_in_a_sweep_is_bitwise_the_run_alone(tmp_path):
    """At (B, H, T) = (20, 50, 100), on the files: programs of runs that differ in all that may differ, and two of them alone."""
    full = ["training.updates=3", "training.log_every=1", "eval.every=2", "eval.sequences=150", "tracker=none"]
    varied = ["seed=0,5", "init.scale=0.5,4", "clip.threshold=0.1,1", "init=gaussian,sparse"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    assert train("-m", *full, *varied, "clip=norm", cwd=together).status == 0
    for own in (
        ["seed=5", "init.scale=4", "clip.threshold=0.1", "init=sparse"],
        ["seed=0", "init.scale=0.5", "clip.threshold=1"],
    ):
        assert train(*full, "clip=norm", *own, cwd=alone).status == 0
    assert len(runs_of(together)) == 16
    assert len(recorded(alone)) == 4
    assert recorded(alone).items() <= recorded(together).items()


# -------------------- failures


def test_a_job_that_fails_fails_alone_and_is_tried_again(tmp_path):
    """Two ways: a file where the directory must be, and one that the store cannot open."""
    sweep = ["-m", *SMALL, "seed=0,1,2,3"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert train(*sweep, cwd=elsewhere).status == 0
    ids = {told(run)["config"]["seed"]: name for name, run in runs_of(elsewhere).items()}
    in_the_way, unwritable = (tmp_path / "runs" / "default" / ids[seed] for seed in (1, 2))
    (unwritable / "steps.jsonl").mkdir(parents=True)
    in_the_way.touch()

    ended = train(*sweep, cwd=tmp_path)
    assert ended.status == 1
    assert "2 completed, 2 failed" in ended.out
    table = ended.err.splitlines()
    assert len(table) == 2
    collected = set(pd.read_parquet(tmp_path / "runs" / "default" / "steps.parquet")["run_id"])
    assert collected == {ids[0], ids[3]}  # without the one whose files cannot be read
    assert all("failed" in line for line in table)
    assert ids[1] in table[0]
    assert "FileExistsError" in table[0]
    assert ids[2] in table[1]
    assert "IsADirectoryError" in table[1]
    assert all(told(tmp_path / "runs" / "default" / ids[seed])["status"] == "completed" for seed in (0, 3))

    record = told(unwritable)
    assert (record["status"], record["error"].split(":")[0]) == ("failed", "IsADirectoryError")

    in_the_way.unlink()
    (unwritable / "steps.jsonl").rmdir()
    ended = train(*sweep, cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert "2 of them finished before" in ended.out
    assert recorded(tmp_path) == recorded(elsewhere)


def test_a_single_run_that_fails_says_so(tmp_path):
    assert train(*SMALL, cwd=tmp_path).status == 0
    [run] = runs_of(tmp_path).values()
    shutil.rmtree(run)
    (run / "timesteps.f32").mkdir(parents=True)
    ended = train(*SMALL, cwd=tmp_path)
    assert ended.status == 1
    assert "1 failed" in ended.out
    line = ended.err.splitlines()[0]
    assert run.name in line
    assert "IsADirectoryError" in line
    assert "Traceback" not in ended.err


def test_a_divergence_is_a_result(tmp_path):
    """Exit status 0, not repeated, and nothing to its neighbours."""
    rates = ["model.activation=linear", "optimizer.lr=0.01,1e30"]
    ended = train("-m", *SMALL, *rates, cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert "1 completed, 1 diverged" in ended.out
    runs = results.load(tmp_path / "runs" / "default").runs.set_index("optimizer.lr")
    assert runs["status"].to_dict() == {0.01: "completed", 1e30: "diverged"}
    assert 0 < runs["diverged_at"][1e30] <= 3
    before = times(tmp_path)
    ended = train("-m", *SMALL, *rates, cwd=tmp_path)
    assert ended.status == 0
    assert "2 of them finished before" in ended.out
    assert times(tmp_path) == before

    alone = tmp_path / "alone"
    alone.mkdir()
    train(*SMALL, "model.activation=linear", "optimizer.lr=0.01", cwd=alone)
    assert recorded(alone).items() <= recorded(tmp_path).items()


def test_a_job_that_hydra_cannot_begin_leaves_its_record(tmp_path):
    assert train(*SMALL, cwd=tmp_path).status == 0
    [run] = runs_of(tmp_path).values()
    shutil.rmtree(run)
    run.mkdir()
    (run / ".hydra").touch()
    assert train("-m", *SMALL, "seed=0,1", cwd=tmp_path).status == 1
    assert told(run)["status"] == "failed"
    assert "FileExistsError" in told(run)["error"]
    assert sorted(results.load(tmp_path / "runs" / "default").runs["status"]) == ["completed", "failed"]


# -------------------- interruptions

# Three programs of two runs, one after the other; the second takes a second, or ends never.
THREE = ["-m", *SMALL, "training.updates=20,300,21", "seed=0,1"]
NEVER = ["-m", *SMALL, "training.updates=20,1000000,21", "seed=0,1"]


@contextmanager
def in_its_second_program(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep that has finished two runs and logged rows of the next two."""
    with start(*arguments, cwd=cwd) as process:
        try:
            until = time.monotonic() + 60
            while sum(len(p.read_bytes().splitlines()) > 30 for p in cwd.glob("runs/default/*/steps.jsonl")) < 2:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.communicate()


def statuses_by_updates(cwd: Path) -> list[tuple[int, str]]:
    runs = results.load(cwd / "runs" / "default").runs
    return sorted(zip(runs["training.updates"], runs["status"], strict=True))


@pytest.mark.slow
def test_a_killed_sweep_is_finished_by_the_same_command(tmp_path):
    """kill -9: what was logged can be read, and in the end the files are those of a sweep that nobody killed."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    with in_its_second_program(*THREE, cwd=killed) as process:
        process.kill()
        process.wait()
    assert statuses_by_updates(killed) == [(20, "completed")] * 2 + [(300, "killed")] * 2
    steps = results.load(killed / "runs" / "default").steps.groupby("run_id")["step"].apply(list)
    assert all(found == list(range(len(found))) for found in steps)
    assert sorted(map(len, steps))[2] > 30

    ended = train(*THREE, cwd=killed)
    assert ended.status == 0
    assert "6 runs, 2 of them finished before" in ended.out
    assert train(*THREE, cwd=undisturbed).status == 0
    assert recorded(killed) == recorded(undisturbed)


def test_a_terminated_sweep_marks_its_runs_and_holds_its_lock_until_then(tmp_path):
    """While it runs, a second command on the same sweep is refused in one line; SIGTERM ends it with status 143."""
    with in_its_second_program(*NEVER, cwd=tmp_path) as process:
        multirun = tmp_path / "runs" / "default" / "multirun.yaml"
        before = multirun.read_bytes(), sorted(runs_of(tmp_path))
        refused = train("-m", *SMALL, "seed=7", cwd=tmp_path)
        assert refused.status == 2
        assert len(refused.err.splitlines()) == 1
        assert "runs/default" in refused.err
        assert (multirun.read_bytes(), sorted(runs_of(tmp_path))) == before
        process.send_signal(signal.SIGTERM)
        ended = end(process)
    assert ended.status == 143
    assert "Traceback" not in ended.err
    assert statuses_by_updates(tmp_path) == [(20, "completed")] * 2 + [(1000000, "killed")] * 2
    assert {told(run)["status"] for run in runs_of(tmp_path).values() if (run / "run.json").exists()} == {
        "completed",
        "killed",
    }
    os.close(lock(tmp_path / "runs" / "default"))


@pytest.mark.slow
def test_control_c_ends_a_sweep_with_130(tmp_path):
    with in_its_second_program(*NEVER, cwd=tmp_path) as process:
        process.send_signal(signal.SIGINT)
        ended = end(process)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert statuses_by_updates(tmp_path) == [(20, "completed")] * 2 + [(1000000, "killed")] * 2


def finished_as_if_undisturbed(cwd: Path, arguments: list[str]) -> None:
    """The same command ends it; then all files are those of a sweep that nobody killed."""
    ended = train(*arguments, cwd=cwd)
    assert ended.status == 0, ended.err
    undisturbed = cwd / "undisturbed"
    undisturbed.mkdir()
    assert train(*arguments, cwd=undisturbed).status == 0
    assert recorded(cwd) == recorded(undisturbed)
    assert not list((cwd / "runs").rglob("*checkpoint*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_a_terminated_sweep_goes_on_at_the_update_where_it_was(tmp_path, number):
    """The signal waits for the end of the update: nothing is trained twice, and completed runs are not touched."""
    with in_its_second_program(*THREE, cwd=tmp_path) as process:
        process.send_signal(number)
        assert end(process).status == 128 + number
    last = {f.parent.name: f.read_bytes().count(b"\n") for f in tmp_path.glob("runs/default/*/steps.jsonl")}
    killed = [name for name, run in runs_of(tmp_path).items() if (run / "checkpoint.pt").exists()]
    assert len(killed) == 2
    done = {p: t for p, t in times(tmp_path).items() if last.get(p.parent.name) == 21}
    assert len({p.parent for p in done}) == 2
    finished_as_if_undisturbed(tmp_path, THREE)
    for name in killed:
        record = told(runs_of(tmp_path)[name])
        assert record["resumed"] == [last[name]]  # rows at 0, 1, ..., last - 1, then one more update
        assert record["status"] == "completed"
    assert done.items() <= times(tmp_path).items()
    log = (tmp_path / "runs" / "default" / "sweep.log").read_text()
    assert log.count(f"resumed from step {last[killed[0]]}\n") == 2
    assert log.count("launched: 6 jobs, 6 runs") == 2
    assert log.count("  completed, step") == 6
    train_log = (runs_of(tmp_path)[killed[0]] / "train.log").read_text().splitlines()
    assert [line.split("  ")[1].split(",")[0].split(" from")[0] for line in train_log] == [
        "started",
        "killed",
        "resumed",
        "completed",
    ]


def test_a_killed_sweep_goes_on_from_its_last_checkpoints(tmp_path):
    """kill -9, with a checkpoint after every update; runs at different steps are grouped anew."""
    often = [*THREE, "hydra.launcher.checkpoint_seconds=0"]
    with in_its_second_program(*often, cwd=tmp_path) as process:
        process.kill()
        process.wait()
    dry = train(*often, "hydra.launcher.dry_run=true", cwd=tmp_path)
    finished_as_if_undisturbed(tmp_path, often)
    steps = [step for run in runs_of(tmp_path).values() for step in told(run)["resumed"]]
    assert len(steps) == 2
    assert min(steps) > 25
    for step in steps:
        assert f"resume from step {step}" in dry.out


@pytest.mark.slow
def test_a_checkpoint_that_is_not_whole_is_told_and_its_run_starts_from_the_beginning(tmp_path):
    with in_its_second_program(*THREE, cwd=tmp_path) as process:
        process.terminate()
        end(process)
    damaged, _ = (run for run in runs_of(tmp_path).values() if (run / "checkpoint.pt").exists())
    content = (damaged / "checkpoint.pt").read_bytes()
    (damaged / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    ended = train(*THREE, cwd=tmp_path)
    assert ended.status == 0
    [line] = [line for line in ended.err.splitlines() if "not usable" in line]
    assert str(damaged.relative_to(tmp_path) / "checkpoint.pt") in line
    assert told(damaged)["resumed"] == []
    assert sorted(len(told(run)["resumed"]) for run in runs_of(tmp_path).values()) == [0] * 5 + [1]


@pytest.mark.slow
def test_a_single_run_is_resumed_like_any_other(tmp_path):
    alone = [*SMALL, "training.updates=300"]
    with start(*alone, cwd=tmp_path) as process:
        while not any(len(p.read_bytes().splitlines()) > 30 for p in tmp_path.glob("runs/default/*/steps.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert end(process).status == 130
    [run] = runs_of(tmp_path).values()
    assert told(run)["status"] == "killed"
    finished_as_if_undisturbed(tmp_path, alone)
    assert len(told(run)["resumed"]) == 1


def test_a_disk_without_room_is_one_line(copied):
    """Nothing can be trained then; nothing is lost either."""
    before = times(copied)
    full = ["sh", "-c", 'ulimit -f 0; exec "$0" "$@"', sys.executable, str(TRAIN), *SWEEP]
    ended = subprocess.run(full, cwd=copied, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"the disk: {os.strerror(errno.EFBIG)}\n")
    assert times(copied) == before


# -------------------- dry run


def test_a_dry_run_says_what_would_be_done_and_does_nothing(copied):
    """Beside finished runs: one that failed, and two new ones."""
    failed = next(run for run in runs_of(copied).values() if told(run)["config"]["seed"] == 0)
    write_json(failed / "run.json", (read_run(failed) or {}) | {"status": "failed"})
    before = times(copied)
    ended = train(*SWEEP, "seed=0,1,2", "hydra.launcher.max_runs=2", "hydra.launcher.dry_run=true", cwd=copied)
    assert (ended.status, ended.err) == (0, "")
    assert "12 jobs, 9 runs, 5 of them finished before" in ended.out
    fates = [line.split("  runs/")[0].strip() for line in ended.out.splitlines() if "  runs/" in line]
    assert sorted(fates) == ["retry (failed)"] + ["skip (completed)"] * 5 + ["train"] * 3
    sizes = [line.split(": ")[1].split(" ")[0] for line in ended.out.splitlines() if line.startswith("  program ")]
    assert sum(map(int, sizes)) == 4
    assert " MB expected" in ended.out
    assert times(copied) == before


@pytest.mark.parametrize(
    "mode", [[], ["-m"], ["hydra.launcher.engine=processes"]], ids=["single", "multirun", "processes"]
)
def test_a_dry_run_leaves_no_trace(tmp_path, mode):
    ended = train(*mode, *SMALL, "eval.every=2", "eval.sequences=10", "hydra.launcher.dry_run=true", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert "1 runs, updates 0 to 3" in ended.out
    assert list(tmp_path.iterdir()) == []


# -------------------- Hydra's side

CALLBACK = """
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback

class Noting(Callback):
    def on_multirun_start(self, config, **kwargs):
        print("note multirun starts")

    def on_job_start(self, config, **kwargs):
        print("note start", config.hydra.job.num, HydraConfig.get().job.num, config.seed)

    def on_job_end(self, config, job_return, **kwargs):
        value = job_return.return_value if job_return.status.name == "COMPLETED" else "-"
        print("note end", config.hydra.job.num, HydraConfig.get().job.num, config.seed, job_return.status.name, value)
"""


def test_callbacks_see_every_job_in_order_with_its_own_result(tmp_path):
    """However many runs train at once; HydraConfig is the job's own in both."""
    (tmp_path / "noting.py").write_text(CALLBACK)
    probe = tmp_path / "probe"
    probe.mkdir()
    assert train("-m", *SMALL, "seed=5,6,7", cwd=probe).status == 0
    ids = {told(run)["config"]["seed"]: name for name, run in runs_of(probe).items()}
    losses = {told(run)["config"]["seed"]: told(run)["summary"]["train/loss"] for run in runs_of(probe).values()}
    (tmp_path / "runs" / "default").mkdir(parents=True)
    (tmp_path / "runs" / "default" / ids[6] / "steps.jsonl").mkdir(parents=True)

    callback = "+hydra.callbacks.noting._target_=noting.Noting"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = end(start("-m", *SMALL, "seed=5,6,7", callback, cwd=tmp_path, environment={"PYTHONPATH": path}))
    assert ended.status == 1, ended.err
    assert [line.removeprefix("note ") for line in ended.out.splitlines() if line.startswith("note")] == [
        "multirun starts",
        "start 0 0 5",
        "start 1 1 6",
        "start 2 2 7",
        f"end 0 0 5 COMPLETED {losses[5]}",
        "end 1 1 6 FAILED -",
        f"end 2 2 7 COMPLETED {losses[7]}",
    ]


@pytest.fixture
def prepared() -> Iterator[launcher.VectorizedLauncher]:
    """A launcher as Hydra sets it up for a sweep."""
    app.register()
    hydra = Hydra.create_main_hydra2("train", create_automatic_config_search_path(None, None, str(CONF)))
    try:
        loader = hydra.config_loader
        config = loader.load_configuration("config", ["+hydra.job.env_set.A=b"], run_mode=RunMode.MULTIRUN)
        made = launcher.VectorizedLauncher()
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        made.setup(hydra_context=context, task_function=lambda _: None, config=config)
        yield made
    finally:
        GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "task.length=20", "init.scale=1e-3", "clip.threshold=2"],
        ["clip=norm", "clip.threshold=2", "sweep=other"],
        ["preset=pascanu_smart_tanh", "init.scale=0.5", "seed=1"],
        ["experiment=vanishing_exploding", "training.updates=7"],
        ["init.std=null", "eval.every=null", "++optimizer.lr=2", "clip.threshold=${optimizer.lr}"],
        ["model.activation=sigmoid", "model.activation=relu", "tracker=none", "tracker.mode=online"],
        ["hydra.job.name=other", "seed=4", "init.name=sparse"],
    ],
    ids=" ".join,
)
def test_jobs_are_composed_as_hydra_composes_them(prepared, overrides):
    """Fast composition is nothing but fast: every node is that of Hydra's own, its own settings included."""
    [job] = prepared.prepare([overrides])
    theirs = prepared.hydra_context.config_loader.load_sweep_config(prepared.config, overrides)
    assert OmegaConf.to_yaml(job.composed) == OmegaConf.to_yaml(theirs)
    assert job.config == typed(theirs)


def test_jobs_of_one_sweep_share_nothing(prepared):
    first, second = prepared.prepare([["seed=1"], ["seed=2"]])
    assert (first.config.seed, second.config.seed) == (1, 2)
    assert (first.composed.seed, second.composed.seed) == (1, 2)


def test_a_later_argument_replaces_an_experiments_sweep(prepared):
    sweeper = launcher.VectorizedSweeper(None)
    sweeper.hydra_context = prepared.hydra_context
    jobs = sweeper.combinations(["seed=range(2)", "clip=none,norm", "task.length=20", "clip=value"])
    assert jobs == [["seed=0", "clip=value", "task.length=20"], ["seed=1", "clip=value", "task.length=20"]]
