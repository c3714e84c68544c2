"""The wandb sink, with the real client: what it wrote is read back from its files. Trainers are their own processes."""

import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rnn_lab.recording import Row, RunInfo
from rnn_lab.recording import wandb as sink_module
from rnn_lab.recording.wandb import WandbSink, dashboard_commands, heat, pooled, rows_in, sampled, wandb_id

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from wandb_file import RunFile, read_run, read_sweep  # noqa: E402

KEY = "planted0" * 5  # as long as a real one
SCALES = (0.5, 1.0, 1.5)
STEPS = range(0, 60, 5)
WANDB = Path(sys.executable).with_name("wandb")


def run_info(sweep: Path, scale: float) -> RunInfo:
    run_id = f"{int(scale * 10):010x}"
    config = {"init": {"name": "gaussian", "scale": scale}, "task": {"name": "temporal_order", "length": 40}, "seed": 3}
    name = f"tanh-scale{scale}-L40-norm-seed3-{run_id}"
    return RunInfo(run_id, sweep.name, sweep / run_id, config, name, ["lab", "tanh"])


def made_rows(scale: float, layers: int = 2, T: int = 40, steps: range = STEPS) -> list[Row]:
    """Rows such as a run leaves, with a vanished, an infinite and an undefined one among them."""
    rng = np.random.default_rng(int(scale * 10))
    rows = []
    for step in steps:
        lag = np.arange(T - 1, -1, -1)
        norms = rng.normal(0, 0.2, (layers, T)) - 2 - lag * (1.4 - scale)
        scalars = {"train/loss": rng.normal() / 3, "grad/norm": 10 ** rng.normal(), "W/rho": scale}
        if step == steps[2]:
            norms[0, :5] = -np.inf
            scalars["grad/norm"] = 0.0
        if step == steps[3]:
            norms[-1, :5], norms[-1, 5] = np.inf, np.nan
            scalars |= {"train/loss": math.nan, "grad/norm": math.inf, "dE_dh/slope": -math.inf}
        series = {"dE_dh/log10_norm": norms, "delta/log10_norm": norms - 0.3, "h/norm": np.ones_like(norms)}
        rows.append(Row(step, scalars, {name: values.astype(np.float32) for name, values in series.items()}))
    return rows


def trainer(sweep: Path, code: str) -> subprocess.Popen:
    """A process that runs `code` with `sweep` and this module's names at hand, and no wandb variable but the key."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "WANDB_API_KEY": KEY, "HOME": str(sweep.parent)}
    head = f"from test_wandb import *\nlogging.basicConfig()\nsweep = Path({str(sweep)!r})\n"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", head + code]
    return subprocess.Popen(command, env=env, cwd=sweep.parent, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen, timeout: float = 60) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def said(process: subprocess.Popen) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def core_of(pid: int) -> int:
    """The wandb-core that process `pid` started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # ended meanwhile
            continue
        if name == "wandb-core" and int(rest.split()[1]) == pid:
            return int(stat.parent.name)
    raise AssertionError(f"process {pid} has no wandb-core")


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def bytes_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scale_of(run: RunFile) -> float:
    return run.config["init"]["scale"]


# -------------------- one sweep, read back


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that were open at once, logged in turn and ended in three ways."""
    folder = tmp_path_factory.mktemp("home") / "runs" / "main"
    folder.parent.mkdir()
    code = """
sinks = [WandbSink(run_info(sweep, scale), "offline") for scale in SCALES]
for rows in zip(*[made_rows(scale) for scale in SCALES]):
    for sink, row in zip(sinks, rows):
        sink.log(row)
for sink, status in zip(sinks, ("completed", "diverged", "failed")):
    sink.finish(status, {"train/loss": 0.25, "grad/norm": math.inf, "eval/error": math.nan})
"""
    assert ended(trainer(folder, code)) == (0, "", "")
    return folder


def test_identity_config_and_end(sweep: Path) -> None:
    runs = read_sweep(sweep)
    assert len(runs) == 3
    for scale, status, code in zip(SCALES, ("completed", "diverged", "failed"), (0, 0, 1), strict=True):
        info = run_info(sweep, scale)
        run = runs[wandb_id(info)]
        assert run.config == info.config
        assert (run.name, run.project, run.group, run.job_type) == (info.name, "rnn_lab", "main", "train")
        assert run.tags == info.tags
        assert run.exit_code == code
        assert run.summary["status"] == status
        assert run.summary["train/loss"] == 0.25
        assert run.summary["grad/norm"] == math.inf
        assert run.summary["eval/error"] is None  # wandb's summary has no nan


def test_every_scalar_and_nothing_else(sweep: Path) -> None:
    for run in read_sweep(sweep).values():
        rows = made_rows(scale_of(run))
        assert [row["_step"] for row in run.rows] == [row.step for row in rows]
        for row in rows:
            written = run.row(row.step)
            expected = row.scalars | sampled(row.timesteps["dE_dh/log10_norm"][-1])
            for name, value in expected.items():
                assert same(written[name], value), (row.step, name)
            others = {name for name in written if not name.startswith(("_", "through_time/"))}
            assert others == set(expected)


def test_heatmap_bin_is_the_time_step_and_count_its_norm(sweep: Path) -> None:
    for run in read_sweep(sweep).values():
        for row in made_rows(scale_of(run)):
            written = run.row(row.step)
            for series, short in (("dE_dh/log10_norm", "dE_dh"), ("delta/log10_norm", "delta")):
                for layer, norms in enumerate(row.timesteps[series], start=1):
                    key = f"through_time/{short}/layer{layer}"
                    assert written[f"{key}._type"] == "histogram"
                    assert written[f"{key}.bins"] == list(range(41))
                    for count, norm in zip(written[f"{key}.values"], norms, strict=True):
                        if np.isfinite(norm) and -46 < norm < 39:
                            assert count == pytest.approx(norm + 46, abs=6e-4)
                        else:
                            assert count == (0 if norm < 0 else 85)


def test_series_stay_out_of_the_summary(sweep: Path) -> None:
    for run in read_sweep(sweep).values():
        assert not [key for key in run.summary if key.startswith(("through_time", "dE_dh_at"))]
        assert "W/rho" in run.summary


def test_rows_are_small(sweep: Path) -> None:
    (largest,) = sorted(path.stat().st_size for path in sweep.glob("wandb/*/*.wandb"))[-1:]
    assert largest / len(STEPS) < 4000  # two layers, two series, T = 40


def test_rows_are_counted_without_wandb(sweep: Path, tmp_path: Path) -> None:
    file = next(sweep.glob("wandb/*/*.wandb"))
    assert rows_in(file) == len(STEPS)
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
    files = bytes_under(home)
    assert len(files) > 3
    assert not [path for path, data in files.items() if KEY.encode() in data]
    assert not [path for path in files if sweep / "wandb" not in path.parents]


def test_dashboard_commands_work(sweep: Path, tmp_path: Path) -> None:
    assert dashboard_commands(tmp_path / "absent") == []
    leet, sync = dashboard_commands(sweep, str(WANDB))
    assert leet == f"{WANDB} leet {sweep}/wandb"
    env = {**os.environ, "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
    dry = subprocess.run(f"{sync} --dry-run", shell=True, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert dry.returncode == 0
    assert "Would sync 3 run(s)" in dry.stdout + dry.stderr


def test_terminal_dashboard_lists_the_runs_and_draws(sweep: Path, tmp_path: Path) -> None:
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed, so there is no terminal to draw in")
    env = {**os.environ, "TMUX_TMPDIR": str(tmp_path), "HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    env |= {"LC_ALL": "C.UTF-8", "WANDB_CONFIG_DIR": str(tmp_path)}
    tmux = ["tmux", "-L", "rnn_lab", "-f", "/dev/null"]

    def screen() -> str:
        shot = [*tmux, "capture-pane", "-p"]
        return subprocess.run(shot, env=env, capture_output=True, text=True, timeout=10).stdout

    leet, _ = dashboard_commands(sweep, str(WANDB))
    subprocess.run([*tmux, "new-session", "-d", "-x", "200", "-y", "55", leet], env=env, check=True, timeout=10)
    try:
        deadline = time.monotonic() + 20
        while not ("Runs [3 items]" in screen() and "Metrics [" in screen()) and time.monotonic() < deadline:
            time.sleep(0.2)
        seen = screen()
    finally:
        subprocess.run([*tmux, "kill-server"], env=env, timeout=10)
    assert "Runs [3 items]" in seen
    assert seen.count("offline-run-") >= 3
    assert all(chart in seen for chart in ("dE_dh_at/lag_0000", "dE_dh_at/lag_0020", "dE_dh_at/t_1"))  # the first page
    assert any(0x2800 < ord(character) < 0x2900 for character in seen), "no curve"


# -------------------- things that happen


def test_killed_trainer_keeps_every_row_older_than_the_flush_interval(tmp_path: Path) -> None:
    process = trainer(
        tmp_path / "killed",
        """
sink = WandbSink(run_info(sweep, 1.0), "offline")
for row in made_rows(1.0):
    sink.log(row)
print("logged", flush=True)
sys.stdin.read()
""",
    )
    assert said(process) == "logged"
    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    ended(process)
    (run,) = read_sweep(tmp_path / "killed").values()
    assert [row["_step"] for row in run.rows] == list(STEPS)
    assert run.config["init"]["scale"] == 1.0
    assert run.exit_code is None


def test_killed_core_costs_one_warning_and_the_next_run_records(tmp_path: Path) -> None:
    process = trainer(
        tmp_path / "sweep",
        """
sinks = [WandbSink(run_info(sweep, scale), "offline") for scale in SCALES[:2]]
for sink in sinks:
    sink.log(made_rows(1.0)[0])
print("logged", flush=True)
sys.stdin.readline()
slowest = 0.0
for row in made_rows(1.0)[1:]:
    for sink in sinks:
        start = time.monotonic()
        sink.log(row)
        slowest = max(slowest, time.monotonic() - start)
for sink in sinks:
    sink.finish("completed", {})
after = WandbSink(run_info(sweep, SCALES[2]), "offline")
for row in made_rows(SCALES[2]):
    after.log(row)
after.finish("completed", {})
print(slowest)
""",
    )
    assert said(process) == "logged"
    os.kill(core_of(process.pid), signal.SIGKILL)
    time.sleep(0.2)
    code, out, err = ended(process)  # communicate() closes stdin, which lets it go on
    assert code == 0, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("WARNING:rnn_lab:wandb: stopped recording (ConnectionResetError")
    assert float(out) < 1
    (last,) = [file for file in (tmp_path / "sweep").glob("wandb/*/*.wandb") if "scale1.5" in file.name]
    assert len(read_run(last).rows) == len(STEPS)


def test_lost_rows_are_told(tmp_path: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # a disk that is soon full: wandb itself says nothing
sink_module.CLOSE_TIMEOUT = 0.5
sink = WandbSink(run_info(sweep, 1.0), "offline")
for row in made_rows(1.0, steps=range(100)):
    sink.log(row)
sink.finish("completed", {})
"""
    returned, _, err = ended(trainer(tmp_path / "full", code))
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert "of 100 rows reached" in err


def test_too_few_descriptors_are_told_beforehand(tmp_path: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 205))
print([sink_module._enough_descriptors(runs) for runs in (1, 2, 3)], resource.getrlimit(resource.RLIMIT_NOFILE))
sink_module._process.open_runs = 1
sink = WandbSink(run_info(sweep, 1.0), "offline")
sink.log(made_rows(1.0)[0])
sink.finish("completed", {})
"""
    returned, out, err = ended(trainer(tmp_path / "few", code))
    assert (returned, out) == (0, "[True, False, False] (204, 205)\n"), err
    assert len(err.splitlines()) == 1, err
    assert "file descriptors" in err
    assert not (tmp_path / "few").exists()


def test_unreachable_server_means_offline(tmp_path: Path) -> None:
    with socket.socket() as free:  # bound but not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        code = f"""
os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:{free.getsockname()[1]}"
sink_module.INIT_TIMEOUT = 1.0
sinks = []
for scale in SCALES:
    start = time.monotonic()
    sinks.append(WandbSink(run_info(sweep, scale), "online"))
    print(time.monotonic() - start)
for sink in sinks:
    sink.log(made_rows(1.0)[0])
    sink.finish("completed", {{}})
"""
        returned, out, err = ended(trainer(tmp_path / "online", code))
    first, second, third = map(float, out.split())
    assert returned == 0
    assert len(err.splitlines()) == 1, err
    assert err.startswith("WARNING:rnn_lab:wandb: no connection")
    assert first < 15
    assert max(second, third) < 1  # only the first run waits
    assert len(list((tmp_path / "online").glob("wandb/*run-*"))) == 3
    assert [len(run.rows) for run in read_sweep(tmp_path / "online").values()] == [1, 1, 1]
    assert not [path for path, data in bytes_under(tmp_path).items() if KEY.encode() in data]


@pytest.mark.slow
def test_a_core_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    process = trainer(
        tmp_path / "sweep",
        """
sink_module.FINISH_TIMEOUT = 0.5
sinks = [WandbSink(run_info(sweep, scale), "offline") for scale in SCALES]
print("open", flush=True)
sys.stdin.readline()
for sink in sinks:
    start = time.monotonic()
    sink.finish("completed", {})
    print(time.monotonic() - start, flush=True)
os._exit(0)
""",
    )
    assert said(process) == "open"
    core = core_of(process.pid)
    os.kill(core, signal.SIGSTOP)
    try:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(timeout=10)
    finally:
        os.kill(core, signal.SIGCONT)  # it holds the pipes open, too
    code, out, err = ended(process)
    first, second, third = map(float, out.split())
    assert code == 0
    assert first < 1
    assert max(second, third) < 0.3
    assert len(err.splitlines()) == 1, err
    assert "still busy" in err


def test_a_run_that_starts_again_leaves_one_file(tmp_path: Path) -> None:
    other = "offline-run-20260101_000000-other-" + wandb_id(run_info(tmp_path / "again", 1.0))
    (tmp_path / "again" / "wandb" / other).mkdir(parents=True)
    code = """
for count in (5, 3):
    sink = WandbSink(run_info(sweep, 1.0), "offline")
    for row in made_rows(1.0)[:count]:
        sink.log(row)
    sink.finish("failed", {})
"""
    assert ended(trainer(tmp_path / "again", code)) == (0, "", "")
    (run,) = read_sweep(tmp_path / "again").values()
    assert len(run.rows) == 3
    assert (tmp_path / "again" / "wandb" / other).is_dir()  # not ours: its id only ends alike


# -------------------- without wandb


def test_disabled_writes_nothing_and_imports_nothing(tmp_path: Path) -> None:
    code = """
sink = WandbSink(run_info(sweep, 1.0), "disabled")
sink.log(made_rows(1.0)[0])
sink.finish("completed", {})
print("wandb" in sys.modules)
"""
    assert ended(trainer(tmp_path / "off", code)) == (0, "False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_failure_at_the_start_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no\ndisk")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, logger="rnn_lab"):
        patch.setattr(sink_module, "_open", broken)
        patch.setattr(sink_module, "_process", sink_module._Process())
        for scale in SCALES:
            sink = WandbSink(run_info(tmp_path / "s", scale), "offline")
            sink.log(made_rows(scale)[0])
            sink.finish("completed", {})
        assert sink_module._process.open_runs == 0
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("wandb: could not start (RuntimeError: no disk)")


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
    assert wandb_id(info) == info.name
    readable = ("a" * 200, "a/b:c;d,e#f?g'h %", "", "-é-", "a" * 52 + "-", "a" * 53 + "-")
    for name in ("no run id at all", *(text + info.run_id for text in readable)):
        short = wandb_id(RunInfo(info.run_id, info.sweep, info.directory, {}, name, []))
        assert short.endswith(info.run_id)
        assert len(short) <= 64
        assert set(short) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert not short.startswith("-")


def test_long_sequences_are_pooled_and_stay_cheap(tmp_path: Path) -> None:
    code = """
sink = WandbSink(run_info(sweep, 1.0), "offline")
rows = made_rows(1.0, layers=1, T=1000, steps=range(100))
times = []
for row in rows:
    start = time.perf_counter()
    sink.log(row)
    times.append(time.perf_counter() - start)
sink.finish("completed", {})
print(np.median(times))
"""
    returned, out, err = ended(trainer(tmp_path / "long", code))
    assert (returned, err) == (0, "")
    assert float(out) < 0.01  # about 0.0009 on an idle core
    (run,) = read_sweep(tmp_path / "long").values()
    row = run.row(0)
    assert row["through_time/dE_dh/layer1.bins"] == list(range(0, 1001, 2))
    norms = made_rows(1.0, layers=1, T=1000, steps=range(100))[0].timesteps["dE_dh/log10_norm"][0]
    expected = heat(norms).reshape(500, 2).mean(1)
    assert row["through_time/dE_dh/layer1.values"] == pytest.approx(expected, abs=6e-4)
