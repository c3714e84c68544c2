"""The loop against a plain PyTorch training loop; runs in company against runs alone; divergence; learning."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracle import PHI, backpropagate, forward, make_config, weights

from rnn_lab import vectorize
from rnn_lab.config import Config
from rnn_lab.tasks import TemporalOrder
from rnn_lab.training import train


class Record(NamedTuple):
    """One row of one run."""

    step: int
    scalars: dict[str, float]
    timesteps: dict[str, np.ndarray]
    diverged: bool


def records(configs: list[Config]) -> list[list[Record]]:
    """The rows of every run, as its files would hold them."""
    rows: list[list[Record]] = [[] for _ in configs]
    for s in train(configs):
        assert not (s.diverged & ~s.runs).any()
        for run in np.flatnonzero(s.runs):
            scalars = {name: float(v[run]) for name, v in s.scalars.items()}
            rows[run].append(
                Record(s.step, scalars, {name: v[run] for name, v in s.timesteps.items()}, bool(s.diverged[run]))
            )
    return rows


def assert_bitwise_equal(a: list[Record], b: list[Record]) -> None:
    """The same rows, the same columns, the same bits."""
    assert [(r.step, r.diverged, set(r.scalars)) for r in a] == [(r.step, r.diverged, set(r.scalars)) for r in b]
    for one, other in zip(a, b, strict=True):
        for name, number in one.scalars.items():
            np.testing.assert_array_equal(number, other.scalars[name], err_msg=f"{name} at step {one.step}")
        for name, series in one.timesteps.items():
            np.testing.assert_array_equal(series, other.timesteps[name], err_msg=f"{name} at step {one.step}")


def short(values: dict | None = None) -> Config:
    return make_config({"task.length": 10, "training.updates": 20, "training.log_every": 1} | (values or {}))


def test_rows_are_at_0_every_log_every_and_the_end_and_at_evaluations():
    assert [r.step for r in records([short({"training.updates": 25, "training.log_every": 10})])[0]] == [0, 10, 20, 25]
    assert [r.step for r in records([short({"training.updates": 10, "training.log_every": 10})])[0]] == [0, 10]
    assert [r.step for r in records([short({"training.updates": 0})])[0]] == [0]
    evaluated = records(
        [short({"training.updates": 10, "training.log_every": 4, "eval.every": 3, "eval.sequences": 100})]
    )[0]
    assert [r.step for r in evaluated] == [0, 3, 4, 6, 8, 9, 10]
    assert [r.step for r in evaluated if "eval/error" in r.scalars] == [0, 3, 6, 9, 10]


def plain_loop(config: Config) -> list[dict[str, float]]:
    """autograd, clip_grad_norm_ and torch.optim.SGD on the run's own mini-batches: what each row should say."""
    init_rng, data_rng, _ = vectorize.streams(config.seed)
    task = TemporalOrder(config.task.length)
    theta = vectorize.stack_parameters([config], task, [init_rng], torch.float64, "cpu")
    w = {name: t.requires_grad_() for name, t in weights(theta, (0,)).items()}
    optimizer = torch.optim.SGD(w.values(), lr=config.optimizer.lr)
    source = vectorize.MiniBatches(task, [data_rng], config.training.batch_size, torch.float64, "cpu")
    rows = []
    for _ in range(config.training.updates + 1):
        x, y = (batch[0] for batch in source.draw())
        model = config.model
        o = forward(w, x, model.activation, model.name, model.leak).o[-1]
        loss = torch.nn.functional.cross_entropy(o, y[0])
        optimizer.zero_grad()
        loss.backward()
        threshold = config.clip.threshold if config.clip.name == "norm" else math.inf
        norm = torch.nn.utils.clip_grad_norm_(w.values(), threshold).item()
        now = weights(theta_of(w, theta), (0,))
        truth = backpropagate(now, x, y, model.activation, "cross entropy", "mean", model.name, model.leak)
        per_example = (truth.dE_dh * len(x[0])).norm(dim=-1), (truth.delta * len(x[0])).norm(dim=-1)
        rows.append(
            {
                "train/loss": loss.item(),
                "train/error": (o.argmax(-1) != y[0]).double().mean().item(),
                "grad/norm": norm,
                "grad/norm_clipped": min(norm, threshold),
                "grad/clipped": float(norm >= threshold),
                "W/sigma_max": torch.linalg.matrix_norm(w["W1"].detach(), 2).item(),
                "dE_dh/log10_norm": per_example[0].square().mean(-1).sqrt().log10().numpy(),
                "delta/log10_norm": per_example[1].square().mean(-1).sqrt().log10().numpy(),
                "h/norm": truth.h.norm(dim=-1).square().mean(-1).sqrt().numpy(),
            }
        )
        if model.name in ("elman", "leaky"):
            rows[-1]["W/rho"] = torch.linalg.eigvals(w["W1"].detach()).abs().max().item()
        optimizer.step()
    return rows


def theta_of(w: dict[str, torch.Tensor], like):
    """The weights of the plain loop as Parameters of one run."""
    theta = like.like()
    for name, view in {
        **{f"{n}1": t for n, t in theta.layers[0]._asdict().items()},
        "V": theta.V,
        "c": theta.c,
    }.items():
        view.copy_(w[name].detach())
    return theta


@pytest.mark.parametrize("clip", ["none", "norm"])
@pytest.mark.parametrize("phi", PHI)
def test_twenty_updates_are_those_of_a_plain_pytorch_loop(phi, clip):
    """Row s describes the parameters after s updates on mini-batch s + 1: losses, errors, norms, curves, in float64."""
    config = short(
        {
            "model.activation": phi,
            "clip.name": clip,
            "clip.threshold": 0.5,
            "optimizer.lr": 0.1,
            "training.dtype": "float64",
            "init.scale": 0.8,
            "probe.spectrum_every": 1,
            "seed": 3,
        }
    )
    expected = plain_loop(config)
    rows = records([config])[0]
    assert [r.step for r in rows] == list(range(21))
    for row, truth in zip(rows, expected, strict=True):
        for name, number in truth.items():
            ours = row.timesteps[name] if name in row.timesteps else row.scalars[name]
            # PyTorch clips by threshold / (norm + 1e-6); curves are recorded in float32
            np.testing.assert_allclose(
                ours,
                number,
                rtol=1e-9 if clip == "none" and name in row.scalars else 2e-5,
                atol=1e-6,
                err_msg=f"{name} at {row.step}",
            )
    assert rows[0].scalars["train/loss"] != pytest.approx(rows[20].scalars["train/loss"], rel=1e-3)


GATED = {"W/rho", "omega", "theory/eta", "theory/slope"}  # that speak of one activation and a square W


@pytest.mark.parametrize("model", ["leaky", "lstm", "gru"])
def test_twenty_updates_of_every_cell_too(model):
    values = {"model.name": model, "model.leak": 0.3, "optimizer.lr": 0.2, "training.dtype": "float64"}
    config = short(values | {"probe.spectrum_every": 1, "clip.name": "norm", "clip.threshold": 0.5, "init.chrono": 9.0})
    rows = records([config])[0]
    for row, truth in zip(rows, plain_loop(config), strict=True):
        for name, number in truth.items():
            ours = row.timesteps[name] if name in row.timesteps else row.scalars[name]
            np.testing.assert_allclose(ours, number, rtol=2e-5, atol=1e-6, err_msg=f"{name} at {row.step}")
    assert rows[0].scalars["train/loss"] != pytest.approx(rows[20].scalars["train/loss"], rel=1e-5)
    missing = GATED - set(rows[0].scalars)
    assert missing == ({"theory/slope"} if model == "leaky" else GATED)
    if model == "leaky":
        first = rows[0].scalars
        assert first["theory/eta"] == pytest.approx(0.7 + 0.3 * first["W/sigma_max"])


@pytest.mark.parametrize("model", ["leaky", "lstm", "gru"])
def test_a_run_of_any_cell_in_a_program_is_bitwise_the_run_alone(model):
    """Leaks, forget biases and chrono times differ between them; recording often changes no bit."""
    values = {"model.name": model, "training.updates": 6, "training.log_every": 3, "clip.name": "norm"}
    configs = [
        make_config(values | {"seed": seed, "model.leak": leak, "init.chrono": chrono, "init.scale": 1.0 + seed})
        for seed, leak, chrono in ((0, 0.2, None), (1, 1.0, 50.0), (2, 0.7, 100.0))
    ]
    together = records(configs)
    for config, rows in zip(configs, together, strict=True):
        assert_bitwise_equal(rows, records([config])[0])
        config.training.log_every = 1
        often = records([config])[0]
        assert [r.scalars["train/loss"] for r in rows] == [often[r.step].scalars["train/loss"] for r in rows]


@pytest.mark.parametrize("model", ["leaky", "lstm", "gru"])
def test_dead_and_saturated_nets_of_any_cell(model):
    """Scale 0: nothing comes back through W. Scale 1e6: gates are saturated; no curve is NaN or +inf. A run that explodes is frozen."""
    scales = (0.0, 1.0, 1e6)
    values = {"model.name": model, "model.leak": 0.5, "training.updates": 3, "optimizer.lr": 1e3, "model.layers": 3}
    configs = [short(values | {"init.scale": scale, "model.hidden": 2, "training.batch_size": 1}) for scale in scales]
    first, *_ = runs = records(configs)
    for rows in runs:
        for row in rows:
            assert not row.diverged or row is rows[-1]
        for name in ("dE_dh/log10_norm", "delta/log10_norm", "dU/log10_norm"):
            assert not (np.isnan(rows[0].timesteps[name]) | np.isposinf(rows[0].timesteps[name])).any()
    top = first[0].timesteps["dE_dh/log10_norm"][-1]
    assert np.isfinite(top[-1])
    if model == "lstm":
        assert np.isneginf(top[:-1]).all(), "h_{t-1} acts through W alone"
        assert np.isfinite(first[0].timesteps["dE_dc/log10_norm"][-1]).all()
    else:
        assert np.isfinite(top).all()
    relu = short(
        {"model.name": "leaky", "model.leak": 0.5, "model.activation": "relu", "init.scale": 1e9, "task.length": 20}
    )
    [row] = records([relu])[0]
    assert row.diverged


def test_clipped_gradients_are_reported():
    rows = records([short({"clip.name": "norm", "clip.threshold": 1.15})])[0]
    assert {r.scalars["grad/clipped"] for r in rows} == {0.0, 1.0}, (
        "the threshold should catch some updates and not others"
    )
    for r in rows:
        s = r.scalars
        assert s["grad/norm_clipped"] == pytest.approx(1.15 if s["grad/clipped"] else s["grad/norm"])
        assert s["grad/cosine"] == pytest.approx(1)
        assert s["grad/nonfinite"] == 0


def test_clipped_fraction_counts_every_update_since_the_last_row():
    values = {"clip.name": "norm", "clip.threshold": 1.15, "training.updates": 23}
    every = [r.scalars["grad/clipped"] for r in records([short(values)])[0]]
    assert 0 < np.mean(every) < 1
    fractions = {
        r.step: r.scalars["grad/clipped_fraction"] for r in records([short(values | {"training.log_every": 5})])[0]
    }
    for first, last in ((0, 0), (1, 5), (6, 10), (11, 15), (16, 20), (21, 23)):
        assert fractions[last] == pytest.approx(np.mean(every[first : last + 1]))


AT_100 = {
    "task.length": 100,
    "training.updates": 12,
    "training.log_every": 5,
    "clip.name": "norm",
    "eval.every": 6,
    "eval.sequences": 100,
}


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_a_run_in_a_program_is_bitwise_the_run_alone(phi):
    """At (B, H, T) = (20, 50, 100): every scalar and time step of every row, whatever the neighbours' configs are."""
    configs = [
        make_config(
            AT_100
            | {
                "model.activation": phi,
                "seed": seed,
                "init.name": init,
                "init.scale": scale,
                "optimizer.lr": lr,
                "clip.threshold": threshold,
            }
        )
        for seed, init, scale, lr, threshold in (
            (0, "gaussian", 1.0, 0.01, 1.0),
            (0, "gaussian", 8.0, 0.5, 100.0),
            (1, "sparse", 0.95, 0.1, 0.01),
        )
    ]
    together = records(configs)
    for config, rows in zip(configs, together, strict=True):
        assert_bitwise_equal(rows, records([config])[0])
    assert_bitwise_equal(records(configs[::-1])[0], together[2])


PASCANU_SIGMOID = {"model.activation": "sigmoid", "init.std": 0.01, "init.input_std": 0.01, "init.output_std": 0.01}


@pytest.mark.parametrize("net", [{"clip.name": "norm"}, PASCANU_SIGMOID], ids=["tanh, clipped", "vanishing"])
def test_log_every_does_not_change_the_numbers(net):
    """A recorded step goes through the renormalised backward pass, and trains on the same bits, underflow or not."""
    values = {"task.length": 100, "training.updates": 10, "optimizer.lr": 0.5, **net}
    often, seldom = (records([make_config(values | {"training.log_every": n})])[0] for n in (1, 5))
    for row in seldom:
        twin = often[row.step]
        for name in set(row.scalars) - {"grad/clipped_fraction"}:
            assert twin.scalars[name] == row.scalars[name] or math.isnan(row.scalars[name])
        for name in twin.timesteps:
            np.testing.assert_array_equal(twin.timesteps[name], row.timesteps[name])


def test_evaluation_does_not_move_the_training_data():
    plain, evaluated = (records([short(extra)])[0] for extra in ({}, {"eval.every": 1, "eval.sequences": 30}))
    assert [r.scalars["train/loss"] for r in plain] == [r.scalars["train/loss"] for r in evaluated]


@pytest.mark.parametrize("sequences", [30, 100, 250])
def test_evaluation_is_loss_and_error_on_fresh_sequences(sequences):
    """Recomputed by hand for the initial net, over exactly as many sequences as asked for."""
    config = short({"training.updates": 0, "eval.every": 1, "eval.sequences": sequences, "training.dtype": "float64"})
    init_rng, _, root = vectorize.streams(config.seed)
    theta = vectorize.stack_parameters([config], TemporalOrder(10), [init_rng], torch.float64, "cpu")
    x, y = TemporalOrder(10).sample(vectorize.evaluation_rng(root, 0), vectorize.BLOCK, 100)
    x, y = (torch.from_numpy(np.concatenate(list(a), axis=1)) for a in (x, y))
    o = forward(weights(theta, (0,)), x.double()[:, :sequences], "tanh").o[-1]
    scalars = records([config])[0][0].scalars
    assert scalars["eval/loss"] == pytest.approx(torch.nn.functional.cross_entropy(o, y[0, :sequences]).item())
    assert scalars["eval/error"] == pytest.approx((o.argmax(-1) != y[0, :sequences]).double().mean().item())


def exploding(lr: float, threshold: float = 1e30) -> Config:
    """A linear net: its loss is not finite some updates after a learning rate this high (it is clipped far too late)."""
    return make_config(
        {
            "task.length": 100,
            "model.activation": "linear",
            "init.scale": 0.9,
            "optimizer.lr": lr,
            "clip.name": "norm",
            "clip.threshold": threshold,
            "training.updates": 12,
            "training.log_every": 4,
        }
    )


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_run_that_explodes_ends_with_the_row_that_shows_it_and_its_neighbours_go_on(log_every):
    """The neighbours' rows are bitwise those of runs alone: same steps, same columns."""
    configs = [exploding(0.001, threshold=3.5), exploding(3.0), exploding(1e6), exploding(0.002)]
    for config in configs:
        config.training.log_every = log_every
    rows = records(configs)
    assert [r[-1].diverged for r in rows] == [False, True, True, False]
    ends = [r[-1].step for r in rows]
    assert ends[0] == ends[3] == 12
    assert 0 < ends[2] < ends[1] < 12
    for run in (1, 2):
        last = rows[run][-1].scalars
        assert not (math.isfinite(last["train/loss"]) and math.isfinite(last["grad/norm"]))
        assert last["grad/nonfinite"] > 0
        assert "W/rho" in last
        assert not any(r.diverged for r in rows[run][:-1])
        assert all(math.isfinite(r.scalars["train/loss"]) for r in rows[run][:-1])
    for config, own in zip(configs, rows, strict=True):
        assert_bitwise_equal(own, records([config])[0])


def test_a_program_ends_when_all_its_runs_have():
    rows = records([exploding(1e6), exploding(1e7)])
    assert all(r[-1].diverged for r in rows)
    assert max(r[-1].step for r in rows) < 12


def test_without_updates_an_overflow_is_a_measurement_not_a_divergence():
    config = make_config({"task.length": 100, "model.activation": "relu", "init.scale": 50.0, "training.updates": 0})
    (row,) = records([config])[0]
    assert not row.diverged
    assert not math.isfinite(row.scalars["train/loss"])


def test_an_infinite_gradient_does_not_reach_its_neighbours_clip():
    """Clipping by norm next to an infinite gradient: the finite run is clipped as it is alone."""
    values = {
        "task.length": 100,
        "model.activation": "linear",
        "clip.name": "norm",
        "clip.threshold": 0.1,
        "training.updates": 5,
        "training.log_every": 1,
    }
    tame, wild = make_config(values | {"init.scale": 0.5}), make_config(values | {"init.scale": 30.0})
    together = records([wild, tame])
    assert together[0][-1].diverged
    assert together[0][-1].step == 0
    assert_bitwise_equal(together[1], records([tame])[0])


def test_the_sigmoid_preset_draws_its_straight_line_to_1e_minus_170():
    """P13's sigmoid net at T = 100 in float32, whose floor is 1e-45: its rate is rho(W) phi'(0) = rho/4 a step."""
    config = make_config(PASCANU_SIGMOID | {"task.length": 100, "training.updates": 0})
    (row,) = records([config])[0]
    curve = row.timesteps["dE_dh/log10_norm"][0]
    assert -185 < curve[0] < -160
    lag = np.arange(99, -1, -1)
    slope, intercept = np.polyfit(lag, curve, 1)
    assert np.abs(curve - (slope * lag + intercept)).max() < 0.5
    assert slope == pytest.approx(math.log10(row.scalars["W/rho"] / 4), abs=0.03)
    assert row.scalars["dE_dh/slope"] == pytest.approx(slope, abs=0.03)
    np.testing.assert_allclose(row.timesteps["phi_prime/mean"], 0.25, atol=1e-4)


def test_a_thousand_steps_work():
    config = make_config(PASCANU_SIGMOID | {"task.length": 1000, "training.updates": 2, "training.log_every": 1})
    rows = records([config])[0]
    assert [r.step for r in rows] == [0, 1, 2]
    for row in rows:
        curve = row.timesteps["dE_dh/log10_norm"]
        assert curve.shape == (1, 1000)
        assert np.isfinite(curve).all()
        assert -1850 < curve[0, 0] < -1650


def test_training_beats_the_trivial_baseline_by_far():
    """Temporal order, L = 10, 400 updates of SGD with norm clipping: from 3/4 wrong to solved (< 1 %)."""
    values = {
        "task.length": 10,
        "optimizer.lr": 0.3,
        "clip.name": "norm",
        "training.updates": 400,
        "training.log_every": 400,
        "eval.every": 400,
        "eval.sequences": 1000,
    }
    for rows in records([make_config(values | {"init.name": name}) for name in ("gaussian", "orthogonal")]):
        first, last = rows[0].scalars, rows[-1].scalars
        assert first["eval/error"] > 0.5
        assert last["eval/error"] < TemporalOrder.solved_below
        assert last["eval/loss"] < 0.05 * TemporalOrder.baseline.loss


def test_reduction_does_not_matter_where_one_step_has_the_loss():
    mean, total = (records([short({"task.reduction": r})])[0] for r in ("mean", "sum"))
    assert_bitwise_equal(mean, total)


def test_two_layers_train_and_report_both():
    rows = records([short({"model.layers": 2, "training.updates": 3})])[0]
    assert {series.shape for series in rows[-1].timesteps.values()} == {(2, 10)}
    assert np.isfinite(rows[-1].timesteps["dE_dh/log10_norm"]).all()


def test_a_run_may_stop_when_it_has_solved_its_task():
    """At its first evaluation below 1 %; what it recorded until then is what it records otherwise, and its neighbours go on."""
    easy = {"task.name": "memorization", "task.length": 1, "task.positions": 1, "optimizer.name": "adam"}
    easy |= {"training.updates": 60, "eval.every": 10, "eval.sequences": 100, "optimizer.lr": 0.02}
    on = [
        make_config(easy | {"seed": 1, "training.stop_when_solved": True}),
        make_config(easy | {"seed": 1, "optimizer.lr": 0.0, "training.stop_when_solved": True}),
    ]
    off = [make_config(easy | {"seed": 1}), make_config(easy | {"seed": 1, "optimizer.lr": 0.0})]
    (solved, unsolved), (whole, other) = records(on), records(off)
    errors = {r.step: r.scalars["eval/error"] for r in whole if "eval/error" in r.scalars}
    ends = min(step for step, error in errors.items() if error < 0.01)
    assert 0 < ends < 60
    assert [r.step for r in solved] == [r.step for r in whole if r.step <= ends]
    assert all(a.scalars.items() >= b.scalars.items() for a, b in zip(solved, whole, strict=False))
    assert "W/rho" in solved[-1].scalars
    assert [r.scalars for r in unsolved] == [r.scalars for r in other]
    assert unsolved[-1].step == 60
