"""Conditions on runs: what they mean, and that they are nothing but conditions."""

from pathlib import Path

import pytest
from test_results import ROWS, write_run

from rnn_lab.conditions import conditions, meeting
from rnn_lab.results import ResultsError, load

RUNS = {
    "a": {"run_id": "a", "seed": 0, "model.activation": "tanh", "init.scale": 1.0, "eval/error": 0.5, "on": True},
    "b": {"run_id": "b", "seed": 1, "model.activation": "relu", "init.scale": 1.5, "eval/error": float("nan"), "on": False},
    "c": {"run_id": "c", "seed": 2, "model.activation": "tanh", "init.scale": 2.0, "init.std": 0.01, "on": None},
    "d": {"run_id": "d", "seed": 3, "model.activation": "tanh", "task.length_range": (50, 200), "versions.hydra-core": "1.3"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "met"),
    {
        "model.activation=tanh": "acd",
        "model.activation = tanh": "acd",
        "init.scale=1": "a",
        "init.scale=1e0": "a",
        "init.scale=null": "d",
        "on=true": "a",
        "model.activation == 'tanh'": "acd",
        'model.activation != "tanh"': "b",
        "model.activation == 'tanh' and init.scale > 1": "c",
        "init.scale > 1 or seed == 3": "bcd",
        "not (init.scale > 1 or seed == 3)": "a",
        "seed == 0 or seed == 1 and on": "a",
        "(seed == 0 or seed == 1) and not on": "b",
        "1 <= init.scale < 2": "ab",
        "2 > init.scale": "ab",
        "init.scale == 1": "a",
        "-1 < seed": "abcd",
        "seed in (0, 3)": "ad",
        "seed not in [0, 3]": "bc",
        "model.activation in ('relu', 'linear')": "b",
        "'an' in model.activation": "acd",
        "seed == init.scale": "c",
        # what a run lacks is null, and NaN is what it lacks
        "init.std == null": "abd",
        "init.std != null": "c",
        "init.std == None": "abd",
        "eval/error < 1": "a",
        "not eval/error < 1": "bcd",
        "eval/error == null": "bcd",
        "on == false": "b",
        "on": "a",
        "task.length_range == [50, 200]": "d",
        "versions.hydra-core == '1.3'": "d",
    }.items(),
)
def test_meaning(condition, met):
    assert "".join(meeting(conditions(condition), RUNS)) == met


def test_all_of_several(tmp_path):
    assert meeting(conditions(["model.activation=tanh", "seed > 0", "seed < 3"]), RUNS) == ["c"]
    assert meeting(conditions([]), RUNS) == list(RUNS)


@pytest.mark.parametrize(
    "foreign",
    [
        "__import__('os').system('touch harm')",
        "seed.__class__.__bases__()",
        "@seed == 1",
        "seed == 1 if on else 2",
        "[run for run in (1, 2)]",
        "lambda: 1",
        "f'{seed}' == '0'",
        "seed[0] == 1",
        "seed * 10**10**10 > 1",
        "(seed := 3) == 3",
        "seed is null",
        "seed ==",
        "== 1",
        "",
        "seed == 1; on",
        "seed == b'1'",
        "seed == 1j",
        "{1: 2} == seed",
        "seed & 1",
        "~seed == 1",
        "(" * 500 + "seed" + ")" * 500,
        "not " * 5000 + "on",
        "seed == 1\x00",
    ],
)
def test_anything_else_is_refused_in_one_line(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResultsError) as refused:
        meeting(conditions(foreign), RUNS)
    assert str(refused.value).startswith("where ")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("model.activation=sigmoid", "where model.activation=sigmoid: no such run; model.activation is relu or tanh"),
        ("seed > 5 and init.scale == 1", "no such run; init.scale is 1 or 1.5 or 2 or null; seed is 0 or 1 or 2 or 3"),
        ("model.activaton == 'tanh'", "no key 'model.activaton'; did you mean model.activation? the runs differ in seed"),
        ("clip=none", "no key 'clip'; the runs differ in seed"),
        ("model.activation > 1", "where model.activation > 1: cannot compare tanh with 1"),
        ("seed in 3", "cannot compare 0 with 3"),
    ],
)  # fmt: skip
def test_errors_say_what_there_is(condition, words):
    with pytest.raises(ResultsError) as refused:
        meeting(conditions(condition), RUNS, ["seed"])
    assert words in str(refused.value)


def test_loading_what_meets_a_condition(tmp_path: Path):
    for run_id, seed, scale in (("a", 0, 1.0), ("b", 1, 1.0), ("c", 1, 2.0)):
        config = {"seed": seed, "init": {"scale": scale}, **({"old": 1} if run_id == "c" else {})}
        write_run(tmp_path, run_id, ROWS[: seed + 1], config=config)
    assert load(tmp_path, where="seed == 1").runs["run_id"].tolist() == ["b", "c"]
    one = load(tmp_path, where=["seed=1", "init.scale < 2"])
    for frame in (one.runs, one.steps, one.timesteps):
        assert frame["run_id"].unique().tolist() == ["b"]
        assert frame.index.tolist() == list(range(len(frame)))
    assert one.config == ("seed", "init.scale")  # `old` is no key of this run
    # the last value of a metric is known only after reading
    assert load(tmp_path, where="train/loss == 2").runs["run_id"].tolist() == ["a"]
    assert load(tmp_path, where=["train/loss < 2", "init.scale == 2"]).runs["run_id"].tolist() == ["c"]
    with pytest.raises(ResultsError, match=r"no key 'train/los'; did you mean train/loss\?"):
        load(tmp_path, where="train/los < 2")
    with pytest.raises(ResultsError, match=r"the runs differ in seed, init\.scale"):
        load(tmp_path, where="zzz=2")
