"""What the mirror gives to wandb, read back from its .wandb files and compared with our own frames; and what happens when things break.

The client is the real one, offline; trainers are processes of their own. The server's side is in test_wandb_online.py.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from wandb_file import RunFile, read_run, read_sweep  # noqa: E402
from wandb_runs import (  # noqa: E402
    SCALES,
    SERIES,
    WANDB,
    assert_no_key,
    assert_rows_are_the_frames,
    assert_table_is_the_frame,
    bytes_under,
    core_of,
    ended,
    made_rows,
    mirror_of,
    run_info,
    said,
    tell,
    trainer,
    under_our_names,
    wait_until_gone,
)

from rnn_lab import results, theory  # noqa: E402
from rnn_lab.recording import Row, wandb  # noqa: E402
from rnn_lab.recording.wandb import payload as payload_module  # noqa: E402
from rnn_lab.recording.wandb.files import dashboard_commands, rows_in, wandb_id  # noqa: E402
from rnn_lab.recording.wandb.payload import Summary, heat, payload, plain, pooled, sampled, table  # noqa: E402

LOGGED = range(0, 60, 5)
IDS = {scale: wandb_id(run_info(Path("runs/main"), scale).name, run_info(Path(), scale).run_id) for scale in SCALES}


def scale_of(run: RunFile) -> float:
    return run.config["init"]["scale"]


def assert_whole(sweep: Path, count: int) -> None:
    """So many runs, one file each, and in each every row of our store."""
    frames, files = results.load(sweep), read_sweep(sweep)
    assert len(files) == len(frames.runs) == count
    for run in files.values():
        assert_rows_are_the_frames(run.rows, frames, run.config["lab"]["run_id"])


# -------------------- one sweep, read back


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that were open at once, logged in turn and ended in three ways."""
    folder = tmp_path_factory.mktemp("home") / "runs" / "main"
    folder.parent.mkdir()
    code = """
stores = [opened(sweep, scale) for scale in SCALES]
for rows in zip(*[made_rows(scale) for scale in SCALES]):
    for store, row in zip(stores, rows):
        store.log(row)
    time.sleep(0.05)
stores[0].finish("completed", {})
stores[1].finish("diverged", {}, diverged_at=55)
stores[2].finish("failed", {}, error="OSError: no space")
wandb.close()
print("wandb" in sys.modules)  # training has no use for it
"""
    assert ended(trainer(folder, code)) == (0, "False\n", "")
    return folder


def test_every_row_is_in_the_files_as_it_is_in_the_frames(sweep: Path) -> None:
    assert_whole(sweep, 3)


def test_identity_config_and_end(sweep: Path) -> None:
    runs = read_sweep(sweep)
    assert set(runs) == set(IDS.values())
    for scale, status, code in zip(SCALES, ("completed", "diverged", "failed"), (0, 0, 1), strict=True):
        info = run_info(sweep, scale)
        run = runs[IDS[scale]]
        lab = run.config.pop("lab")
        assert run.config == info.config
        assert (lab["git"]["commit"], lab["T"], lab["series"], lab["status"]) == (run.commit, 40, SERIES, status)
        assert (run.name, run.project, run.group, run.job_type) == (info.name, "rnn_lab", "main", "train")
        assert (run.tags, run.notes) == (info.tags, "python train.py seed=3")
        assert run.commit.startswith("c0ffee")
        assert run.exit_code == code
        assert run.summary["status"] == status
        assert run.summary.get("diverged_at") == (55 if status == "diverged" else None)


def test_summary_has_final_and_best_values_and_the_half_life(sweep: Path) -> None:
    for run in read_sweep(sweep).values():
        rows = made_rows(scale_of(run))
        losses = [row.scalars["train/loss"] for row in rows]
        assert run.summary["train/loss"] == losses[-1]
        assert run.summary["best/train/loss"] == np.nanmin(losses)
        assert 10 ** (-0.1 * run.summary["dE_dh/half_life"]) == pytest.approx(0.5)  # the last slope is -0.1
        series_of_time = [key for key in run.summary if key.startswith(("through_time", "dE_dh_at"))]
        assert not series_of_time


def test_sampled_time_steps(sweep: Path) -> None:
    for run in read_sweep(sweep).values():
        for row in made_rows(scale_of(run)):
            expected = sampled(row.timesteps["dE_dh/log10_norm"][-1])
            found = under_our_names(run.row(row.step))
            written = {key: value for key, value in found.items() if key.startswith("dE_dh_at/")}
            assert written.keys() == expected.keys()
            np.testing.assert_equal([written[key] for key in expected], list(expected.values()))


def test_heatmap_bin_is_the_time_step_and_count_its_norm(sweep: Path) -> None:
    for run in read_sweep(sweep).values():
        for row in made_rows(scale_of(run)):
            written = run.row(row.step)
            assert not [key for key in written if "delta" in key]  # one heatmap a layer, unless all are asked for
            for layer, norms in enumerate(row.timesteps["dE_dh/log10_norm"], start=1):
                histogram = written[f"through_time/dE_dh/layer{layer}"]
                assert histogram["_type"] == "histogram"
                assert histogram["bins"] == list(range(41))
                for count, norm in zip(histogram["values"], norms, strict=True):
                    if np.isfinite(norm) and -46 < norm < 39:
                        assert count == pytest.approx(norm + 46, abs=6e-3)
                    else:
                        assert count == (0 if norm < 0 else 85)


def test_table_holds_the_exact_norms_of_runs_with_a_result(sweep: Path) -> None:
    frames, seen = results.load(sweep), 0
    for run in read_sweep(sweep).values():
        tables = list((run.path.parent / "files" / "media" / "table").glob("*"))
        assert len(tables) == (run.config["lab"]["status"] != "failed")
        for file in tables:
            assert_table_is_the_frame(file, frames, run.config["lab"]["run_id"], ["dE_dh/log10_norm"])
            assert run.summary["timesteps"]["path"] == f"media/table/{file.name}"
            exact = run.path.parent / "files" / "timesteps.f32"
            assert exact.read_bytes() == (sweep / run.config["lab"]["run_id"] / "timesteps.f32").read_bytes()
            seen += 1
    assert seen == 2


@pytest.mark.slow
def test_all_series(tmp_path: Path) -> None:
    code = 'record(sweep, 1.0, series="all")\nwandb.close()'
    assert ended(trainer(tmp_path / "all", code)) == (0, "", "")
    (run,) = read_sweep(tmp_path / "all").values()
    row = run.row(0)
    for short in ("dE_dh", "delta", "h"):
        assert len(row[f"through_time/{short}/layer2"]["values"]) == 40
    h = made_rows(1.0)[0].timesteps["h/norm"][1]
    assert row["through_time/h/layer2"]["values"] == pytest.approx(h, abs=6e-3)
    (file,) = (run.path.parent / "files" / "media" / "table").glob("*")
    assert_table_is_the_frame(file, results.load(tmp_path / "all"), run.config["lab"]["run_id"], SERIES)


def test_rows_are_small(sweep: Path) -> None:
    largest = max(path.stat().st_size for path in sweep.glob("wandb/*/*.wandb"))
    assert largest / len(LOGGED) < 3000  # two layers, T = 40


@pytest.mark.slow
def test_rows_are_counted_without_wandb(tmp_path: Path) -> None:
    code = """
for scale in SCALES[:1]:
    store = opened(sweep, scale)
    for row in made_rows(scale, range(100)):
        store.log(row)
    store.finish("completed", {})
wandb.close()
"""
    assert ended(trainer(tmp_path / "long", code)) == (0, "", "")
    (file,) = (tmp_path / "long").glob("wandb/*/*.wandb")
    assert rows_in(file) == 100
    cut = tmp_path / "cut.wandb"
    for size in (
        file.stat().st_size // 2,
        32768,
        32768 + 3,
        32768 + 40,
    ):  # a record that spans two blocks is cut in two
        cut.write_bytes(file.read_bytes()[:size])
        assert rows_in(cut) == len(read_run(cut).rows) > 0
    assert rows_in(tmp_path / "none.wandb") == 0


def test_no_key_on_disk_and_nothing_outside_the_sweep(sweep: Path) -> None:
    home = sweep.parent.parent
    assert len(bytes_under(home)) > 3
    assert_no_key(home)
    assert not [path for path in bytes_under(home) if sweep not in path.parents]


def test_dashboard_commands_work(sweep: Path, tmp_path: Path) -> None:
    assert dashboard_commands(tmp_path / "absent") == []
    leet, sync = dashboard_commands(sweep, str(WANDB))
    assert leet == f"{WANDB} leet {sweep}/wandb"
    env = {**os.environ, "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    dry = subprocess.run(f"{sync} --dry-run", shell=True, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert dry.returncode == 0
    assert "Would sync 3 run(s)" in dry.stdout + dry.stderr


@pytest.mark.slow
def test_terminal_dashboard_shows_the_right_charts_first(sweep: Path, tmp_path: Path) -> None:
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed, so there is no terminal to draw in")
    env = {**os.environ, "TMUX_TMPDIR": str(tmp_path), "HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    env |= {"LC_ALL": "C.UTF-8", "WANDB_CONFIG_DIR": str(tmp_path)}
    tmux = ["tmux", "-L", "rnn_lab", "-f", "/dev/null"]

    def screen() -> str:
        shot = [*tmux, "capture-pane", "-p"]
        return subprocess.run(shot, env=env, capture_output=True, text=True, timeout=10).stdout

    def until(seen: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + 30
        while not seen(screen()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return screen()

    leet, _ = dashboard_commands(sweep, str(WANDB))
    subprocess.run([*tmux, "new-session", "-d", "-x", "200", "-y", "55", leet], env=env, check=True, timeout=10)
    try:
        one = until(lambda seen: "Runs [3 items]" in seen and "Metrics [1-9" in seen)
        for key in ("Down", "Space", "Down", "Space"):  # draws the other two as well
            subprocess.run([*tmux, "send-keys", key], env=env, check=True, timeout=10)
            time.sleep(0.3)
        all_three = until(lambda seen: marked(seen) == 3)
    finally:
        subprocess.run([*tmux, "kill-server"], env=env, timeout=10)
    assert "Runs [3 items]" in one
    assert one.count("offline-run-") >= 3
    assert marked(all_three) == 3
    for seen in (one, all_three):
        titles = re.findall(r"Main/(\d)_(\S+)|(W/rho)", seen)  # from left to right, from top to bottom
        measured = ["train/loss", "dE_dh/slope", "grad/norm", "dE_dh_at/lag_0000", "dE_dh_at/t_1"]
        assert [name for _, name, _ in titles if name] == measured
        assert titles[-1][2], "after them the others"
        assert any(0x2800 < ord(character) < 0x2900 for character in seen), "no curve"


def marked(screen: str) -> int:
    """How many runs are drawn: each has a mark before its name."""
    return len(re.findall("^ [^○\\s] offline-run-", screen, re.MULTILINE))


# -------------------- things that happen

OPEN_AND_WAIT = """
stores = [opened(sweep, scale) for scale in SCALES]
for scale, store in zip(SCALES, stores):
    for row in made_rows(scale)[:6]:
        store.log(row)
"""
LOG_THE_REST = """
print("open", flush=True)
sys.stdin.readline()
slowest = 0.0
for scale, store in zip(SCALES, stores):
    for row in made_rows(scale)[6:]:
        start = time.monotonic()
        store.log(row)
        slowest = max(slowest, time.monotonic() - start)
    store.finish("completed", {})
start = time.monotonic()
wandb.close()
print(slowest, time.monotonic() - start)
"""


def until_recorded(sweep: Path, rows: int) -> None:
    """Until wandb's files hold so many rows; they are flushed twice a second."""
    deadline = time.monotonic() + 60
    while sum(rows_in(file) for file in sweep.glob("wandb/*/*.wandb")) < rows:
        assert time.monotonic() < deadline, "not recorded"
        time.sleep(0.05)


def test_killed_trainer_loses_no_row(tmp_path: Path) -> None:
    process = trainer(tmp_path / "killed", OPEN_AND_WAIT + LOG_THE_REST)
    assert said(process) == "open"
    mirror, core = mirror_of(process.pid), core_of(process.pid)
    process.kill()
    ended(process)
    wait_until_gone(mirror)
    wait_until_gone(core)
    assert_whole(tmp_path / "killed", 3)
    for run in read_sweep(tmp_path / "killed").values():
        assert (run.exit_code, run.summary["status"]) == (1, "killed")


@pytest.mark.slow
def test_all_processes_killed_and_rebuilt(tmp_path: Path) -> None:
    """As when a machine goes down: what was flushed is there, and our store has the rest."""
    sweep = tmp_path / "killed"
    process = trainer(sweep, OPEN_AND_WAIT + LOG_THE_REST)
    assert said(process) == "open"
    until_recorded(sweep, 18)
    mirror, core = mirror_of(process.pid), core_of(process.pid)
    for pid in (core, mirror, process.pid):
        os.kill(pid, signal.SIGKILL)
    ended(process)
    assert [run.exit_code for run in read_sweep(sweep).values()] == [None] * 3
    assert_whole(sweep, 3)
    with (sweep / run_info(sweep, 1.0).run_id / "steps.jsonl").open("ab") as file:
        file.write(b'{"step": 30, "train/lo')  # torn, as a killed writer leaves it
    code = "wandb.rebuild(sorted(path.parent for path in sweep.glob('*/run.json')))"
    assert ended(trainer(sweep, code)) == (0, "", "")
    assert_whole(sweep, 3)
    assert [run.exit_code for run in read_sweep(sweep).values()] == [1] * 3


def test_killed_core_costs_one_warning_and_no_row(tmp_path: Path) -> None:
    process = trainer(tmp_path / "sweep", OPEN_AND_WAIT + LOG_THE_REST)
    assert said(process) == "open"
    until_recorded(tmp_path / "sweep", 1)
    os.kill(core_of(process.pid), signal.SIGKILL)
    tell(process)
    code, out, err = ended(process)
    slowest, _ = map(float, out.split())
    assert code == 0
    assert len(err.splitlines()) == 1, err
    assert err.startswith("WARNING:rnn_lab:wandb: wandb-core died")
    assert slowest < 0.5
    assert_whole(tmp_path / "sweep", 3)
    assert [run.exit_code for run in read_sweep(tmp_path / "sweep").values()] == [0] * 3


@pytest.mark.slow
def test_killed_mirror_costs_one_warning_and_its_runs_can_be_rebuilt(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    process = trainer(sweep, OPEN_AND_WAIT + LOG_THE_REST)
    assert said(process) == "open"
    os.kill(mirror_of(process.pid), signal.SIGKILL)
    tell(process)
    code, _, err = ended(process)
    assert code == 0
    assert len(err.splitlines()) == 1, err
    assert "its process was killed" in err
    code = "wandb.rebuild(sorted(path.parent for path in sweep.glob('*/run.json')))"
    assert ended(trainer(sweep, code)) == (0, "", "")
    assert_whole(sweep, 3)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [core_of, mirror_of])
def test_frozen_processes_delay_neither_rows_nor_the_end(tmp_path: Path, frozen) -> None:
    sweep = tmp_path / "sweep"
    process = trainer(sweep, "wandb.PATIENCE, wandb.GRACE = 1.0, 1.0" + OPEN_AND_WAIT + LOG_THE_REST)
    assert said(process) == "open"
    mirror, core = mirror_of(process.pid), core_of(process.pid)
    os.kill(frozen(process.pid), signal.SIGSTOP)
    tell(process)
    code, out, err = ended(process)
    slowest, closing = map(float, out.split())
    assert code == 0
    assert slowest < 0.5
    assert closing < 4
    assert len(err.splitlines()) == 1, err
    assert "our own store has every row" in err
    wait_until_gone(mirror)
    wait_until_gone(core)
    assert len(results.load(sweep).steps) == 3 * len(LOGGED)
    code = "wandb.rebuild(sorted(path.parent for path in sweep.glob('*/run.json')))"
    assert ended(trainer(sweep, code)) == (0, "", "")
    assert_whole(sweep, 3)


def test_runs_for_which_there_was_no_time_at_all_are_told(tmp_path: Path) -> None:
    """The mirror has not even imported wandb."""
    code = "wandb._mirror = wandb.Mirror(0.0)\nrecord(sweep, 1.0)\nwandb.close()"
    returned, _, err = ended(trainer(tmp_path / "brief", code))
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert "1 runs not recorded" in err
    assert "wandb_rebuild.py" in err


@pytest.mark.slow
def test_lost_rows_are_told(tmp_path: Path) -> None:
    """A disk that is soon full for wandb, which itself says nothing; our own store is elsewhere."""
    code = """
import resource
from rnn_lab.recording.wandb import Mirror
wandb._mirror = Mirror(20.0)
resource.prlimit(wandb._mirror._process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
record(sweep, 1.0, "failed")  # without a table, which would be told anyway
wandb.close()
"""
    returned, _, err = ended(trainer(tmp_path / "full", code))
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert "of 12 rows reached" in err
    assert len(results.load(tmp_path / "full").steps) == 12


@pytest.mark.slow
def test_with_few_descriptors_runs_are_recorded_one_after_another(tmp_path: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (108, 108))  # for two runs at once
stores = [opened(sweep, scale) for scale in (0.1, 0.2, 0.3, 0.4, 0.5)]
for store in stores:
    for row in made_rows(1.0):
        store.log(row)
for store in stores:
    store.finish("completed", {})
wandb.close()
"""
    returned, _, err = ended(trainer(tmp_path / "few", code))
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert "descriptors (`ulimit -Hn`) for 2 runs at once" in err
    assert_whole(tmp_path / "few", 5)


@pytest.mark.slow
def test_a_run_that_starts_again_leaves_one_file(tmp_path: Path) -> None:
    """In one process, as when a program breaks and its runs are trained one by one; then in another, synced or not in between."""
    sweep = tmp_path / "again"
    other = f"offline-run-20260101_000000-other-{wandb_id(run_info(sweep, 1.0).name, run_info(sweep, 1.0).run_id)}"
    (sweep / "wandb" / other).mkdir(parents=True)
    code = """
for count in (5, 3):
    store = opened(sweep, 1.0)
    for row in made_rows(1.0)[:count]:
        store.log(row)
    store.finish("failed", {})
wandb.close()
"""
    assert ended(trainer(sweep, code)) == (0, "", "")
    (run,) = read_sweep(sweep).values()
    assert len(run.rows) == 3
    run.path.with_name(f"{run.path.name}.synced").touch()
    assert ended(trainer(sweep, "record(sweep, 1.0)\nwandb.close()")) == (0, "", "")
    assert_whole(sweep, 1)
    assert not list(sweep.glob("wandb/*/*.synced"))  # so that it will be sent
    assert (sweep / "wandb" / other).is_dir()  # not ours: its id only ends alike


@pytest.mark.slow
def test_a_resumed_run_waits_for_the_mirror_of_its_killed_trainer(tmp_path: Path) -> None:
    """Two trainers, one after the other, whose mirrors overlap: one file in the end, with the rows of both."""
    sweep = tmp_path / "sweep"
    process = trainer(sweep, OPEN_AND_WAIT + LOG_THE_REST)
    assert said(process) == "open"
    until_recorded(sweep, 18)
    mirror = mirror_of(process.pid)
    os.kill(mirror, signal.SIGSTOP)
    process.kill()
    ended(process)
    code = """
from rnn_lab.recording import checked
for scale in SCALES:
    with (run_info(sweep, scale).directory / "steps.jsonl").open("ab") as steps, \\
         (run_info(sweep, scale).directory / "timesteps.f32").open("ab") as timesteps:
        for row in made_rows(scale)[6:]:
            block = np.stack([row.timesteps[name] for name in SERIES]).astype("<f4").tobytes()
            timesteps.write(block)
            steps.write(checked.line({"step": row.step, **row.scalars}, block))
    wandb.mirror(run_info(sweep, scale).directory, "offline", "rnn_lab", "dE_dh")
print("told", flush=True)
wandb.close()
"""
    resumed = trainer(sweep, code)
    assert said(resumed) == "told"
    time.sleep(0.5)
    os.kill(mirror, signal.SIGCONT)
    assert ended(resumed) == (0, "", "")
    assert_whole(sweep, 3)


@pytest.mark.slow
def test_a_run_that_is_trained_at_the_moment_is_not_rebuilt(tmp_path: Path) -> None:
    code = """
store = opened(sweep, 1.0)
for row in made_rows(1.0):
    store.log(row)
wandb.rebuild([run_info(sweep, 1.0).directory])
store.finish("completed", {})
wandb.close()
"""
    returned, _, err = ended(trainer(tmp_path / "sweep", code))
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert "another process is working here" in err
    assert_whole(tmp_path / "sweep", 1)


# -------------------- without wandb


def test_disabled_writes_nothing_and_starts_nothing(tmp_path: Path) -> None:
    wandb.mirror(tmp_path, "disabled", "rnn_lab", "dE_dh")
    assert wandb._mirror is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_run_there_is_one_warning(tmp_path: Path) -> None:
    code = """
for name in "ab":
    wandb.mirror(sweep / name, "offline", "rnn_lab", "dE_dh")
record(sweep, 1.0)
wandb.close()
"""
    returned, _, err = ended(trainer(tmp_path / "sweep", code))
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert "no run here" in err
    assert_whole(tmp_path / "sweep", 1)


# -------------------- what a row, a summary and a table hold


def test_heat_is_monotone_finite_and_not_negative() -> None:
    norms = np.array([-np.inf, -1750, -46, -44.9, -20, -1e-3, 0, 1, 38.5, 39, 500, np.inf], dtype=np.float32)
    counts = heat(norms)
    assert np.isfinite(counts).all()
    assert (np.diff(counts) >= 0).all()
    assert counts[0] == counts[2] == 0
    assert counts[-1] == 85
    assert counts[6] == 46
    assert (np.diff(counts[2:10]) > 0).all()  # everything that float32 holds keeps a colour of its own
    assert heat(np.array([np.nan])) == 85


@pytest.mark.parametrize("T", [1, 40, 512, 513, 1000, 1025, 5000])
def test_pooling(T: int) -> None:
    values = np.arange(T, dtype=float)
    means, edges = pooled(values)
    assert len(means) == len(edges) - 1 <= 512
    assert (edges[0], edges[-1]) == (0, T)
    assert (np.diff(edges) > 0).all()
    for mean, start, stop in zip(means, edges[:-1], edges[1:], strict=True):
        assert mean == pytest.approx(values[start:stop].mean())
    if T <= 512:
        assert np.array_equal(means, values)


def test_sampled_time_steps_are_named_by_lag() -> None:
    norms = np.arange(1, 101, dtype=float)  # the value is t itself
    chosen = sampled(norms)
    assert chosen["dE_dh_at/lag_0000"] == 100
    assert chosen["dE_dh_at/lag_0020"] == 80
    assert chosen["dE_dh_at/t_1"] == 1
    assert list(chosen) == sorted(chosen)
    assert len(sampled(np.zeros(1))) == 2


def test_id_is_safe_short_and_keeps_the_run_id() -> None:
    info = run_info(Path("runs/x"), 1.5)
    assert wandb_id(info.name, info.run_id) == info.name
    readable = ("a" * 200, "a/b:c;d,e#f?g'h %", "", "-é-", "a" * 52 + "-", "a" * 53 + "-")
    for name in ("no run id at all", *(text + info.run_id for text in readable)):
        short = wandb_id(name, info.run_id)
        assert short.endswith(info.run_id)
        assert len(short) <= 64
        assert set(short) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert not short.startswith("-")


def test_long_sequences_are_pooled() -> None:
    (row,) = made_rows(1.0, steps=[0], layers=1, T=1000)
    written = payload(row, ["dE_dh/log10_norm"])["through_time/dE_dh/layer1"]
    assert written["bins"] == list(range(0, 1001, 2))
    expected = heat(row.timesteps["dE_dh/log10_norm"][0]).reshape(500, 2).mean(1)
    assert written["values"] == pytest.approx(expected, abs=6e-3)


def test_plain_colours_are_finite_and_not_negative() -> None:
    values = np.array([0, 0.25, 3, -1, np.nan, np.inf, -np.inf], dtype=np.float32)
    assert plain(values)[:5].tolist() == [0, 0.25, 3, 0, 0]
    assert plain(values)[5] > 1e38
    assert json.loads(json.dumps(plain(values).tolist()))[6] == 0


def test_half_life_is_the_time_in_which_a_norm_halves_or_doubles() -> None:
    for slope in (-3.0, -0.1, -1e-5, 0.2):
        assert 10 ** (abs(slope) * theory.half_life(slope)) == pytest.approx(2)
    assert theory.half_life(-math.inf) == 0
    assert np.isnan(theory.half_life([0.0, math.nan])).all()


def test_best_is_the_smallest_finite_value() -> None:
    summary = Summary()
    for step, loss in enumerate((2.0, math.nan, 0.5, -math.inf, 0.75, math.inf)):
        summary.add(Row(step, {"train/loss": loss}, {}))
    ended = summary.ended({"status": "diverged", "diverged_at": 5})
    assert ended == {"train/loss": math.inf, "best/train/loss": 0.5, "status": "diverged", "diverged_at": 5}


def test_table_of_unequal_lengths_is_thinned_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [made_rows(1.0, steps=[step], T=3 + step % 2)[0] for step in range(9)]
    columns, cells = table(rows, ["h/norm"])
    assert columns == ["step", "layer", "t", "h/norm"]
    expected = [[r.step, k, t] for r in rows for k in (1, 2) for t in range(1, 4 + r.step % 2)]
    assert [list(cell[:3]) for cell in cells] == expected
    assert cells[4][3] == rows[0].timesteps["h/norm"][1, 1]  # step 0, layer 2, t = 2
    monkeypatch.setattr(payload_module, "MOST_TABLE_ROWS", 40)  # five of eight cells
    assert sorted({cell[0] for cell in table(rows, ["h/norm"])[1]}) == [0, 2, 4, 6, 8]
