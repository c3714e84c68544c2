"""A reader that looks while a run is written sees each row once, whole and in order, and how the run ends."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from rnn_lab.recording import Row, RunInfo, checked
from rnn_lab.recording.follow import Follower
from rnn_lab.recording.store import Locked, StoreSink

SERIES = ["dE_dh/log10_norm", "h/norm"]


@pytest.fixture
def store(tmp_path) -> Iterator[StoreSink]:
    info = RunInfo("0123456789", "s", tmp_path, {}, "name", [])
    found = StoreSink(info, {"series": SERIES, "layers": 2, "T": 5})
    yield found
    if (tmp_path / "run.json").read_text().count('"running"'):
        found.finish("killed", {})


@pytest.fixture
def follower(store, tmp_path) -> Iterator[Follower]:
    with closing(Follower(tmp_path)) as found:
        yield found


def row(step: int, T: int = 5) -> Row:
    rng = np.random.default_rng(step)
    series = {name: rng.normal(size=(2, T)).astype(np.float32) for name in SERIES}
    return Row(step, {"train/loss": float(rng.normal()), "grad/norm": float("nan")}, series)


def assert_same(found: list[Row], expected: list[Row]) -> None:
    assert [r.step for r in found] == [r.step for r in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_equal(a.scalars, b.scalars)
        np.testing.assert_equal(a.timesteps, b.timesteps)


def test_rows_come_once_whole_and_in_order_of_whatever_length(store, follower):
    rows = [row(step, T=3 + step % 3) for step in range(50)]
    found = []
    for k, r in enumerate(rows):
        store.log(r)
        if k % 7 == 0:
            found += follower.rows(3)  # falls behind, too
    while more := follower.rows(3):
        found += more
    assert_same(found, rows)
    follower.rewind()
    assert_same(follower.rows(50), rows)


def test_a_row_is_not_seen_before_its_line_is_whole(store, follower, tmp_path):
    store.log(row(0))
    file = tmp_path / "steps.jsonl"
    assert_same(follower.rows(9), [row(0)])
    block = np.stack([row(1).timesteps[name] for name in SERIES])
    with (tmp_path / "timesteps.f32").open("ab") as timesteps:
        timesteps.write(block.tobytes())
    second = checked.line({"step": 1, **row(1).scalars}, block.tobytes())
    for part in (second[:10], second[10:-1]):
        with file.open("ab") as steps:
            steps.write(part)
        assert follower.rows(9) == []
    with file.open("ab") as steps:
        steps.write(second[-1:])
    (found,) = follower.rows(9)
    assert found.step == 1
    assert np.array_equal(found.timesteps["h/norm"], row(1).timesteps["h/norm"])


def test_the_end_is_seen(store, follower):
    assert follower.record()["status"] == "running"
    store.finish("diverged", {}, diverged_at=3)
    assert (follower.record()["status"], follower.record()["diverged_at"]) == ("diverged", 3)


def test_one_follower_a_run(follower, tmp_path):
    with pytest.raises(Locked, match="another process"):
        Follower(tmp_path)
    follower.close()
    Follower(tmp_path).close()


def test_nothing_to_follow(tmp_path):
    with pytest.raises(ValueError, match="no run here"):
        Follower(tmp_path)
