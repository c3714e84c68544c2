"""What the mirror recorded comes back from wandb as our own store has it: from its files, and, asked by the real client, from a server."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from commands import ENVIRONMENT
from wandb_runs import WANDB, ended, trainer
from wandb_server import Server

from rnn_lab import results
from rnn_lab.results import Results, ResultsError, load

RUNS = """
record(sweep, 0.5)
record(sweep, 1.0, "diverged", series="all")
store = opened(sweep, 1.5)
rows = made_rows(1.5)
for row, length in zip(rows, (40, 37, 44, *[40] * 9)):  # each has its own length
    norms = {name: np.resize(values, (LAYERS, length)) for name, values in row.timesteps.items()}
    store.log(Row(row.step, row.scalars, norms))
store.finish("completed", {})
store = opened(sweep, 2.0)
store.log(rows[0])
store.finish("failed", {}, error="RuntimeError: of no memory")
wandb.close()
"""
COMPLETED = ["0000000005", "000000000a", "000000000f"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in both: our own store and, offline, wandb's files."""
    sweep = tmp_path_factory.mktemp("reader") / "runs" / "s"
    sweep.mkdir(parents=True)
    status, _, err = ended(trainer(sweep, RUNS))
    assert (status, err) == (0, "")
    return sweep


@pytest.fixture(scope="module")
def only_files(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(sweep / "wandb", tmp_path_factory.mktemp("files") / "wandb"))


@pytest.fixture(scope="module")
def server(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has been sent all of them."""
    folder = tmp_path_factory.mktemp("server")
    found = Server(folder / "backend")
    dirs = {
        name: str(folder) for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "HOME")
    }
    files = [str(file) for file in (sweep / "wandb").glob("offline-run-*")]
    found.start()
    try:
        environment = found.environment | dirs | {"PATH": os.environ["PATH"]}
        sent = subprocess.run(
            [str(WANDB), "sync", *files], capture_output=True, text=True, env=environment, timeout=120
        )
        assert sent.returncode == 0, sent.stderr
        yield found
    finally:
        found.kill()


def asked(server: Server, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program that reads from the server: the client keeps its settings for as long as its process lives."""
    dirs = {name: str(folder) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "HOME")}
    environment = server.environment | dirs | {"PYTHONPATH": str(Path(results.__file__).parents[1])}
    code = f"from rnn_lab.results import load\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )


def assert_same(found: Results, own: Results, **how: bool) -> None:
    for name in ("runs", "steps", "timesteps"):
        one, other = (getattr(loaded, name).drop(columns="path", errors="ignore") for loaded in (found, own))
        pd.testing.assert_frame_equal(one, other, check_exact=True, **how)


def test_a_folder_of_wandb_files_gives_our_frames(sweep, only_files):
    completed = "status in ('completed', 'diverged')"
    own, found = load(sweep, where=completed), load(only_files, where=completed)
    assert own.runs["run_id"].tolist() == COMPLETED
    assert own.timesteps.groupby("run_id")["t"].max().tolist() == [40, 40, 44]
    assert_same(found, own)
    assert found.config == own.config
    assert Path(found.runs["path"][0]).suffix == ".wandb"


def test_a_run_without_a_result_has_its_scalars(sweep, only_files):
    failed = load(only_files, where="status=failed")
    pd.testing.assert_frame_equal(failed.steps, load(sweep, where="status=failed").steps)
    assert failed.runs["error"].tolist() == ["RuntimeError: of no memory"]
    assert failed.timesteps.empty


def test_a_run_alone_a_sweep_without_our_store_and_both_together(sweep, only_files, tmp_path):
    [one] = only_files.glob("*run-*0000000005")
    assert len(load(one).runs) == 1
    shutil.copytree(only_files, tmp_path / "s" / "wandb")
    assert len(load(tmp_path / "s").runs) == 4
    with pytest.warns(UserWarning, match="run 0000000005 is in .* using"):
        assert len(load([sweep / "0000000005", one]).runs) == 1


def test_our_own_store_goes_first(sweep):
    assert not load(sweep).runs["path"].str.endswith(".wandb").any()


BEFORE = """
import os
import wandb
LAB = {"format": 1, "run_id": "0123456789", "sweep": "s", "status": "completed", "series": ["dE_dh/log10_norm"], "layers": 1, "T": 3}
settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_save_requirements=False)
run = wandb.init(mode="offline", id="old", config={"seed": 4, "lab": LAB}, settings=settings)
for step, loss in ((0, 2.0), (10, float("nan"))):
    heat = {"_type": "histogram", "values": [45.0, 45.5, 46.0], "bins": [0, 1, 2, 3]}
    row = {"train/loss": loss, "dE_dh/slope": -0.5, "dE_dh_at/lag_0000": 0.0, "dE_dh_at/t_1": -1.0, "through_time/dE_dh/layer1": heat}
    run.log(row, step=step, commit=True)
run.finish()
"""


@pytest.mark.slow
def test_files_of_before_the_first_charts_had_names_of_their_own(tmp_path):
    """Contract names throughout, handed over row by row: what was recorded until November 2026."""
    environment = ENVIRONMENT | {"WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", BEFORE], env=environment, cwd=tmp_path, check=True, timeout=120)
    loaded = load(tmp_path / "wandb")
    assert loaded.steps["step"].tolist() == [0, 10]
    assert loaded.steps["train/loss"].fillna(-1).tolist() == [2.0, -1]
    assert loaded.steps["dE_dh/slope"].tolist() == [-0.5, -0.5]
    assert not [name for name in loaded.steps if name.startswith(("Main", "dE_dh_at", "through_time"))]
    assert loaded.runs[["run_id", "seed"]].to_numpy().tolist() == [["0123456789", 4]]


def test_torn_damaged_and_foreign_files(only_files, tmp_path):
    shutil.copytree(next(only_files.glob("*0000000005")), tmp_path / "run-1")
    [file] = tmp_path.glob("*/*.wandb")
    data = file.read_bytes()
    steps = len(load(tmp_path).steps)
    file.write_bytes(data[: len(data) // 2])
    torn = load(tmp_path)
    assert torn.runs["status"].tolist() == ["killed"]
    assert 0 < len(torn.steps) < steps
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(ResultsError, match=r"\.wandb: damaged at byte"):
        load(tmp_path)
    file.write_bytes(b"something else")
    with pytest.raises(ResultsError, match=r"\.wandb: not a \.wandb file"):
        load(tmp_path)


def test_a_server_gives_our_frames(sweep, server, tmp_path):
    """But for what JSON doesn't keep: the order of keys, and whether a whole number was a float."""
    completed = "status in ('completed', 'diverged')"
    code = f"""
found = load("wandb:lab/rnn_lab", where={completed!r})
for name in ("runs", "steps", "timesteps"):
    getattr(found, name).to_pickle(f"{{name}}.pkl")
"""
    done = asked(server, code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    own = load(sweep, where=completed)
    for name in ("runs", "steps", "timesteps"):
        found, ours = pd.read_pickle(tmp_path / f"{name}.pkl"), getattr(own, name)
        if name == "runs":
            assert found["path"].str.fullmatch(r"wandb:lab/rnn_lab/.*0000000\w{3}").all()
        keys = [key for key in ("run_id", "step", "layer", "t") if key in ours]
        found, ours = (
            f.drop(columns="path", errors="ignore").sort_values(keys, ignore_index=True) for f in (found, ours)
        )
        pd.testing.assert_frame_equal(found, ours, check_like=True, check_dtype=name != "runs", check_exact=True)


def test_what_a_condition_excludes_is_not_fetched(server, tmp_path):
    before = (server.folder / "asked.txt").read_text() if (server.folder / "asked.txt").exists() else ""
    done = asked(server, "print(*load('wandb:lab/rnn_lab', where='init.scale == 0.5').runs['run_id'])", tmp_path)
    assert (done.returncode, done.stdout) == (0, "0000000005\n")
    assert "0000000005" in (told := (server.folder / "asked.txt").read_text()[len(before) :])
    assert "000000000a" not in told


@pytest.mark.parametrize(
    ("address", "message"),
    [("wandb:lab", "expected wandb:ENTITY/PROJECT"), ("wandb:lab/nothing", "wandb:lab/nothing: ")],
)
def test_addresses_without_runs(server, tmp_path, address, message):
    done = asked(server, f"load({address!r})", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "ResultsError" in done.stderr.splitlines()[-1]
