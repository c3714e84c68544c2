"""The tables' numbers, on frames whose answer is known; and what LaTeX and Markdown make of them."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rnn_lab.results import METRICS, Results, ResultsError

sys.path.append(str(Path(__file__).parents[1]))
tables = importlib.import_module("analysis.tables")

CONFIG = {"task.name": "characters", "task.length": 200, "task.path": None, "task.ahead": 1, "task.reduction": "mean",
          "task.length_range": None, "model.name": "elman", "clip.name": "none", "regularizer.name": "none", "regularizer.alpha": 4.0,
          "optimizer.lr": 1.0, "preset": "none", "training.updates": 800, "seed": 0}  # fmt: skip
BASELINE = {"baseline/test_loss": 3.0, "baseline/given_last_test_loss": 2.0}
C, CR = {"clip.name": "norm"}, {"clip.name": "norm", "regularizer.name": "omega"}
LN2 = math.log(2)


def frames(*runs: tuple[dict, str, dict[str, list[float]]]) -> Results:
    """Each run: what differs, its status, its evaluations at steps 0, 100, 200 ..."""
    table = pd.DataFrame(
        [CONFIG | BASELINE | differs | {"run_id": f"r{n}", "status": s} for n, (differs, s, _) in enumerate(runs)]
    )
    rows = [
        {"run_id": f"r{n}", "step": 100 * k, **dict(zip(metrics, values, strict=True))}
        for n, (_, _, metrics) in enumerate(runs)
        for k, values in enumerate(zip(*metrics.values(), strict=True))
    ]
    steps = pd.DataFrame(rows)
    return Results(table, steps.reindex(columns=[*dict.fromkeys([*steps, *METRICS])]), pd.DataFrame(), tuple(CONFIG))


def losses(valid: list[float], test: list[float]) -> dict[str, list[float]]:
    return {"eval/loss": valid, "test/loss": test}


def test_the_test_loss_is_that_of_the_lowest_validation_loss_in_bits():
    """Each seed's own evaluation; mean and standard deviation over seeds; not the lowest test loss."""
    found = tables.natural_data(
        frames(
            ({}, "completed", losses([9, 3, 4], [9, 2.8, 2.7])),
            ({"seed": 1}, "completed", losses([9, 4, 3.5], [9, 4, 3.2])),
            ({"seed": 2}, "killed", losses([1, 1, 1], [1, 1, 1])),
            (C, "diverged", losses([9, 2.5], [9, 2.4])),
        )
    ).set_index("method")
    plain = found.loc["MSGD"]
    assert plain["data"] == "Python's reference manual, next"
    assert plain["test"] * LN2 == pytest.approx(3.0)
    assert plain["spread"] * LN2 == pytest.approx(np.std([2.8, 3.2], ddof=1))
    assert plain["valid"] * LN2 == pytest.approx(3.25)
    assert (plain["updates"], plain["seeds"], plain["diverged"], plain["unfinished"]) == (150, 2, 0, 1)
    assert (plain["alone"] * LN2, plain["given_last"] * LN2) == pytest.approx((3, 2))
    assert found.loc["MSGD-C", ["seeds", "diverged", "unfinished"]].tolist() == [1, 1, 0]
    assert math.isnan(found.loc["MSGD-C", "spread"])


def test_of_a_methods_settings_the_one_of_lowest_mean_validation_loss_is_chosen():
    slow, fast = {"optimizer.lr": 1.0}, {"optimizer.lr": 8.0}
    found = tables.natural_data(
        frames(
            (slow, "completed", losses([3.0], [2.0])),
            (slow | {"seed": 1}, "completed", losses([3.0], [2.0])),
            (fast, "completed", losses([2.0], [3.0])),
            (fast | {"seed": 1}, "completed", losses([3.5], [3.0])),
            (fast | CR, "completed", losses([4.0], [3.0])),
        )
    )
    assert list(found["setting"]) == ["lr 1", "lr 8", "lr 8"]
    assert list(found["chosen"]) == [False, True, True]
    [header, row] = tables.natural_cells(found)
    assert header[-2:] == ["MSGD", "MSGD-CR"]
    assert row[-2:] == [f"{3 / LN2:.2f} ± 0.00", f"{3 / LN2:.2f}"]


def test_music_is_in_nats_and_each_data_set_has_a_row():
    music = {"task.name": "music"}
    found = tables.natural_data(
        frames(
            (music, "completed", losses([6.0], [6.5])),
            ({"task.ahead": 5}, "completed", losses([3.0], [3.0])),
            ({"task.path": "a/war_and_peace.txt"}, "completed", losses([2.0], [2.0])),
        )
    ).set_index("data")
    assert found.loc["Bach's chorales, next", ["unit", "test"]].tolist() == ["nats a step", 6.5]
    assert found.loc["war_and_peace, next", "test"] == pytest.approx(2 / LN2)
    assert found.loc["Python's reference manual, 5 ahead", "test"] == pytest.approx(3 / LN2)


def errors(trained: list[float], longer: list[float]) -> dict[str, list[float]]:
    return {"eval/error": trained, "eval/error_L500": longer, "eval/error_L5000": [0.9] * len(longer)}


def test_a_task_is_solved_once_and_other_lengths_are_tested_there():
    order, addition = (
        {"task.name": "temporal_order", "task.length_range": (50, 200)},
        {"task.name": "addition", "task.length": 60},
    )
    found = tables.pathological_tasks(
        frames(
            (order | CR, "completed", errors([0.7, 0.005, 0.004], [0.7, 0.0, 0.5])),
            (order | CR | {"seed": 1}, "completed", errors([0.7, 0.005], [0.7, 0.2])),
            (order | CR | {"seed": 2}, "diverged", errors([0.7], [0.6])),
            (order | CR | {"seed": 3}, "running", errors([0.0], [0.0])),
            (addition | CR, "completed", errors([0.7, 0.01], [0.7, 0.001])),
        )
    ).set_index(["task", "length"])
    assert list(dict.fromkeys(found.index.get_level_values("length"))) == ["trained", "500", "5000"]
    trained, longer = found.loc["temporal order", "trained"], found.loc["temporal order", "500"]
    assert (trained["solved"], trained["seeds"], trained["updates"], trained["unfinished"]) == (2, 3, 100, 1)
    assert (longer["solved"], longer["seeds"]) == (1, 3)
    assert longer["error"] == pytest.approx((0 + 0.2 + 0.6) / 3)
    assert (trained["trained_on"], found.loc["addition", "trained"]["trained_on"]) == ("50 to 200", "60")
    assert found.loc["addition", "trained"]["solved"] == 0
    header, first, second = tables.pathological_cells(found.reset_index())
    assert header == ["task", "trained on", "solved", "updates", "at 500", "at 5000"]
    assert first == ["addition", "60", "0/1", "> 800", "1/1", "0/1"]
    assert second == ["temporal order", "50 to 200", "2/3", "100", "1/3", "0/3"]


def test_it_refuses_what_it_would_have_to_mix_or_has_nothing_of():
    run = ({}, "completed", losses([1.0], [1.0]))
    with pytest.raises(ResultsError, match="share"):
        tables.natural_data(frames(run, run))
    with pytest.raises(ResultsError, match="sum"):
        tables.natural_data(frames(({"task.reduction": "sum"}, *run[1:])))
    with pytest.raises(ResultsError, match="evaluated"):
        tables.natural_data(frames(({}, "completed", losses([np.nan], [np.nan]))))


def test_latex_and_markdown_say_the_same():
    cells = [["data", "MSGD_x"], ["50 % & more", "1.50 ± 0.02"], ["b", "> 800"]]
    assert tables.markdown(cells).splitlines()[1:3] == ["| --- | ---: |", "| 50 % & more | 1.50 ± 0.02 |"]
    assert tables.latex(cells) == (
        "\\begin{tabular}{lr}\n\\toprule\ndata & MSGD\\_x \\\\\n\\midrule\n"
        "50 \\% \\& more & 1.50 $\\pm$ 0.02 \\\\\nb & $>$ 800 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_files_are_written_for_the_tables_that_there_are(tmp_path):
    results = frames(({}, "completed", losses([1.0], [1.0])))
    written = tables.write(results, tmp_path)
    assert [path.name for path in written] == ["natural_data.tex", "natural_data.md", "natural_data.csv"]
    assert pd.read_csv(tmp_path / "natural_data.csv")["run_ids"].tolist() == ["r0"]
