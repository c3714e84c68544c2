"""What a page holds are the frames: numbers to the digits that it says, norms within the error that it says."""

import base64
import importlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_results import write_run

from rnn_lab.results import load

sys.path.append(str(Path(__file__).parents[1]))
embedding = importlib.import_module("analysis.embedding")

SERIES = ("dE_dh/log10_norm", "h/norm")


def decode(packed: bytes, T: int) -> tuple[np.ndarray, np.ndarray]:
    """The format as its documentation says it: values (record, T), and by how much each record's may be off."""
    records = np.frombuffer(packed, np.uint8).reshape(-1, 8 + T)
    ends = np.ascontiguousarray(records[:, :8]).view("<f4").astype(float)
    codes = np.cumsum(records[:, 8:].astype(int), axis=1) % 256
    level = np.diff(ends) / 252
    values = ends[:, :1] + (codes - 3) * level
    values[codes == 0], values[codes == 1], values[codes == 2] = np.nan, -np.inf, np.inf
    return values, level[:, 0] / 2


def unpack(text: str, T: int) -> np.ndarray:
    return decode(zlib.decompress(base64.b64decode(text)), T)[0]


# -- one byte a norm


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e3])  # decades a step: norms down to 1e-100000
def test_a_norm_is_off_by_half_a_level_at_most(scale):
    walks = scale * np.random.default_rng(0).normal(-1, 1, (50, 100)).cumsum(1).astype("<f4")
    values, off = decode(embedding.quantise(walks).tobytes(), 100)
    np.testing.assert_allclose(off, np.ptp(walks.astype(float), axis=1) / 504, rtol=1e-6)
    error = np.abs(values - walks)
    assert (error <= off[:, None] * (1 + 1e-6)).all()
    assert error.max() > 0.9 * off.max()  # and not by much less: all levels are used


def test_ends_and_constants_are_exact_and_what_is_not_finite_is_itself():
    rows = np.array(
        [[1.5, -2, 0.25], [7, 7, 7], [-np.inf, 3, 3], [np.nan, np.inf, -np.inf], [np.nan] * 3, [2, -np.inf, 1]], "<f4"
    )
    values, off = decode(embedding.quantise(rows).tobytes(), 3)
    np.testing.assert_array_equal(values[1:], rows[1:])
    np.testing.assert_array_equal(values[0, :2], rows[0, :2])
    assert off[0] == 3.5 / 504
    assert not off[1:5].any()


# -- what is embedded


def sweep(path: Path) -> Path:
    """Four runs that differ in scale, clip and its threshold (in step with the clip), and seed."""
    rng = np.random.default_rng(1)
    for scale in (0.5, 2.0):
        for clip, threshold in (("none", 1.0), ("norm", 0.123456789)):
            rows = [{"step": step, "train/loss": rng.random(), "grad/norm": np.inf} for step in range(0, 70, 10)]
            config = {"seed": int(rng.integers(99)), "init": {"scale": scale}, "task": {"length": 10}}
            config |= {"clip": {"name": clip, "threshold": threshold}, "tracker": {"name": f"{scale}"}}
            write_run(path, f"{scale}{clip}", rows, rng.normal(-9, 9, (7, 2, 2, 5)), SERIES, 2, 5, config=config)
    return path


def test_axes_are_what_varies_and_say_it_once(tmp_path):
    page = embedding.embed(load(sweep(tmp_path)))
    assert page["axes"] == ["init.scale", "clip.name", "seed"]
    assert page["runs"][0]["label"].startswith("scale 0.5, clip none, seed ")
    assert page["runs"][1]["label"].startswith("scale 0.5, norm, seed ")
    assert page["config"]["task.length"] == "10"
    assert "init.scale" not in page["config"]


def test_numbers_are_those_of_the_frames(tmp_path):
    loaded = load(sweep(tmp_path))
    page = embedding.embed(loaded)
    keys = [column["key"] for column in page["columns"]]
    for run, (_, row) in zip(page["runs"], loaded.runs.iterrows(), strict=True):
        steps = loaded.steps[loaded.steps["run_id"] == row["run_id"]]
        assert run["steps"] == steps["step"].tolist()
        assert run["metrics"]["train/loss"] == [float(f"{loss:.5g}") for loss in steps["train/loss"]]
        assert run["metrics"]["grad/norm"] == ["Infinity"] * 7
        assert run["cells"][keys.index("train/loss")] == row["train/loss"]
        assert run["baseline"] == {"loss": 1.386, "error": 0.75}
        through = loaded.timesteps[loaded.timesteps["run_id"] == row["run_id"]]
        shown = unpack(run["series"]["dE_dh/log10_norm"], 5).ravel()  # record, layer, t: the order of the frame
        np.testing.assert_allclose(shown, through["dE_dh/log10_norm"], atol=60 / 504)
        for layer, means in enumerate(run["means"]["h/norm"], start=1):
            expected = through[through["layer"] == layer].groupby("step")["h/norm"].mean()
            np.testing.assert_allclose(means, expected, rtol=6e-5)
    json.dumps(page, allow_nan=False)


def test_the_half_life_is_that_of_the_slope(tmp_path):
    for name, slope in (("a", -0.30103), ("b", 0.30103 / 50), ("c", 0.0), ("d", np.nan)):
        write_run(tmp_path, name, [{"step": 0, "dE_dh/slope": slope}], config={"seed": ord(name)})
    page = embedding.embed(load(tmp_path))
    at = [column["key"] for column in page["columns"]].index("half_life")
    assert [run["cells"][at] for run in page["runs"]] == [pytest.approx(1, 1e-5), pytest.approx(50, 1e-5), None, None]


def test_shorter_records_are_aligned_at_the_loss(tmp_path):
    path = write_run(tmp_path, "a", [{"step": 0}, {"step": 1, "T": 2}], np.zeros((0,)), T=4)
    np.array([1, 2, 3, 4, 5, 6], "<f4").tofile(path / "timesteps.f32")
    (run,) = embedding.embed(load(tmp_path))["runs"]
    assert (run["T"], run["lengths"]) == (4, [4, 2])
    values = unpack(run["series"]["dE_dh/log10_norm"], 4)
    np.testing.assert_allclose(values, [[1, 2, 3, 4], [np.nan, np.nan, 5, 6]], atol=3 / 504)


def test_runs_without_records_are_rows_without_curves(tmp_path):
    write_run(tmp_path, "a", status="failed", error="no memory", config={"seed": 0})
    write_run(tmp_path, "b", [{"step": 0, "train/loss": np.nan}], series=(), config={"seed": 1})
    page = embedding.embed(load(tmp_path))
    keys = [column["key"] for column in page["columns"]]
    assert keys == ["seed", "status", "flags", "message", "run_id"]
    known = "uncommitted changes"
    assert [run["cells"] for run in page["runs"]] == [
        [0, "failed", f"failed at 0 of ?; {known}", "no memory", "a"],
        [1, "completed", known, None, "b"],
    ]
    assert [(run["steps"], run["metrics"], run["series"]) for run in page["runs"]] == [([], {}, {}), ([0], {}, {})]


@pytest.mark.parametrize("every", [2, 4, 100])
def test_thinning_keeps_the_first_and_the_last_record(tmp_path, every):
    loaded = load(sweep(tmp_path))
    whole, page = embedding.embed(loaded), embedding.embed(loaded, every)
    for run, full in zip(page["runs"], whole["runs"], strict=True):
        kept = sorted({*range(0, 7, every), 6})
        assert run["steps"] == [10 * record for record in kept]
        assert run["metrics"]["train/loss"] == [full["metrics"]["train/loss"][record] for record in kept]
        assert run["cells"] == full["cells"]
        shown, all_shown = (unpack(r["series"]["dE_dh/log10_norm"], 5).reshape(-1, 2, 5) for r in (run, full))
        np.testing.assert_array_equal(shown, all_shown[kept])
