"""Runs of different true length in one program: each is what it is alone at its own length, and records its own t = 1..l."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import backpropagate, each_run, make_config, random_parameters, weights

from rnn_lab import bptt, probes, results, vectorize
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman
from rnn_lab.config import container, problems, run_id, static_key
from rnn_lab.losses import softmax_cross_entropy, squared_error
from rnn_lab.recording import Row, RunInfo
from rnn_lab.recording.store import StoreSink
from rnn_lab.scaled import value
from rnn_lab.training import train

INPUTS, HIDDEN, OUTPUTS, BATCH, STEPS = 4, 5, 3, 3, 7
LOSSES = {"cross entropy": softmax_cross_entropy, "squared error": squared_error}
close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-14)


def problem(runs: tuple[int, ...], L: int, loss: str = "cross entropy"):
    """Sequences with noise where a run sits out, targets there too, and how many steps that is: 0, 1, ... T - 1."""
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((*runs, STEPS, BATCH, INPUTS)))
    late = torch.arange(1, 1 + math.prod(runs)).view(runs) * 2 % STEPS
    if loss == "cross entropy":
        return x, torch.from_numpy(rng.integers(OUTPUTS, size=(*runs, L, BATCH))), late
    return x, torch.from_numpy(rng.standard_normal((*runs, L, BATCH, OUTPUTS))), late


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("L", "loss"), [(1, "squared error"), (1, "cross entropy"), (STEPS, "cross entropy")])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_every_run_is_the_run_alone_at_its_true_length(runs, phi, L, loss, reduction, layers):
    """States, total gradients, parameter gradients and the objective, plain and renormalised; zero where a run sits out."""
    theta = random_parameters(runs, (INPUTS, HIDDEN, OUTPUTS), layers)
    x, y, late = problem(runs, L, loss)
    net = bptt.Net(Elman(ACTIVATIONS[phi]), LOSSES[loss], L, reduction)
    buffers, grads = bptt.Buffers(theta, net.cell, STEPS, BATCH, keep_dE_dh=True), theta.like()
    buffers.late = late
    objective, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, late)
    bptt.backward(theta, x, dE_do, net, buffers, grads)
    scaled_buffers, scaled_grads = bptt.Buffers(theta, net.cell, STEPS, BATCH), theta.like()
    scaled_buffers.late = late
    bptt.forward(theta, x, net, scaled_buffers)
    adjoints = bptt.scaled_backward(theta, x, dE_do, net, scaled_buffers, scaled_grads)
    for run in each_run(runs):
        out = int(late[run])
        truth = backpropagate(weights(theta, run), x[run][out:], y[run][min(out, L - 1) :], phi, loss, reduction)
        close(objective[run], truth.objective)
        for n in range(layers):
            for found, expected in (
                (buffers.h[n][run][1:], truth.h[n]),
                (buffers.dE_dh[n][run], truth.dE_dh[n]),
                (buffers.delta[n][run], truth.delta[n]),
                (scaled_buffers.delta[n][run], truth.delta[n]),
                (value(adjoints.dE_dh[n])[run], truth.dE_dh[n]),
                (value(adjoints.delta[n])[run], truth.delta[n]),
            ):
                close(found[out:], expected)
                assert not found[:out].any()
        for gradient in (grads, scaled_grads):
            for name, expected in truth.grads.items():
                close(weights(gradient, run)[name], expected, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("K", [1, 2, 4, STEPS])
@pytest.mark.parametrize("L", [1, STEPS])
def test_truncated_bptt_too(runs, L, K):
    theta = random_parameters(runs, (INPUTS, HIDDEN, OUTPUTS), 2)
    x, y, late = problem(runs, L)
    phi = ACTIVATIONS["tanh"]  # phi'(0) = 1: nothing hides a step that should be skipped
    net = bptt.Net(Elman(phi), softmax_cross_entropy, L)

    def gradient(theta, x, y, net, late):
        buffers, grads = bptt.Buffers(theta, net.cell, x.shape[-3], BATCH), theta.like()
        buffers.late = late
        _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, late)
        bptt.truncated_backward(theta, x, dE_do, net, buffers, grads, K)
        return grads

    together = gradient(theta, x, y, net, late)
    for run in each_run(runs):
        out = int(late[run])
        alone = theta.like()
        mine = type(theta)(theta.flat[run], *_views(theta, run))
        own_y = y[run][min(out, L - 1) :]
        alone = gradient(mine, x[run][out:], own_y, bptt.Net(net.cell, net.loss, len(own_y)), None)
        close(together.flat[run], alone.flat)


def _views(theta, run):
    """Layers, V and c of one run."""
    layers = [type(layer)(*(t[run] for t in layer)) for layer in theta.layers]
    return layers, theta.V[run], theta.c[run]


def test_starting_together_costs_and_changes_nothing():
    """`late` of zeros and None give the same bits."""
    theta = random_parameters((3,), (INPUTS, HIDDEN, OUTPUTS), 2, torch.float32)
    x, y, _ = problem((3,), STEPS)
    net, found = bptt.Net(Elman(ACTIVATIONS["sigmoid"]), softmax_cross_entropy, STEPS), []
    for late in (None, torch.zeros(3, dtype=torch.int64)):
        buffers, grads = bptt.Buffers(theta, net.cell, STEPS, BATCH), theta.like()
        buffers.late = late
        loss, dE_do = bptt.objective(bptt.forward(theta, x.float(), net, buffers), y, net, late)
        bptt.backward(theta, x.float(), dE_do, net, buffers, grads)
        found.append((loss, grads.flat))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


# -------------------------------------------------------------------------------------------------- through the training

ADDITION = {"task.name": "addition", "task.length": 40, "training.dtype": "float64", "training.log_every": 1}
RANGE = {"task.name": "copying", "task.length_range": [2, 9], "task.positions": 3, "task.values": 2} | {
    "training.dtype": "float64",
    "training.log_every": 1,
}


@pytest.mark.parametrize("phi", ["sigmoid", "tanh"])
@pytest.mark.parametrize(
    "values", [ADDITION, RANGE, RANGE | {"task.reduction": "sum"}], ids=["addition", "range", "range, sum"]
)
def test_records_are_those_of_the_run_alone_at_its_true_length(values, phi):
    """Losses, errors, gradient norms and curves of every record against autograd on the run's own l steps; lr = 0."""
    values = values | {"training.updates": 5, "model.activation": phi, "optimizer.lr": 0.0}
    configs = [make_config(values | {"seed": seed}) for seed in range(3)]
    loss = "squared error" if values is not RANGE and "task.length" in values else "cross entropy"
    task, sources, thetas = vectorize.make_task(configs[0].task), [], []
    for config in configs:
        init_rng, data_rng, _ = vectorize.streams(config.seed)
        sources.append(vectorize.MiniBatches(task, [data_rng], 20, torch.float64, "cpu"))
        thetas.append(weights(vectorize.stack_parameters([config], task, [init_rng], torch.float64, "cpu"), (0,)))
    seen = set()
    for snapshot in train(configs):
        for run, (source, w) in enumerate(zip(sources, thetas, strict=True)):
            x, y = (t[0].clone() for t in source.draw())
            out = 0 if source.late is None else int(source.late)
            assert snapshot.late[run] == out
            seen.add(out)
            own_y = y[min(out, len(y) - 1) :]
            truth = backpropagate(w, x[out:], own_y, phi, loss, values.get("task.reduction", "mean"))
            scalars = {name: v[run] for name, v in snapshot.scalars.items()}
            assert scalars["train/loss"] == pytest.approx(truth.objective.item(), rel=1e-10)
            norm = torch.cat([g.flatten() for g in truth.grads.values()]).norm().item()
            assert scalars["grad/norm"] == pytest.approx(norm, rel=1e-10)
            o = truth.o[-len(own_y) :]
            wrong = ((o - own_y) ** 2 > 0.04).any(-1) if loss == "squared error" else o.argmax(-1) != own_y
            assert scalars["train/error"] == pytest.approx(wrong.any(0).double().mean().item())
            expected = {"h/norm": truth.h.norm(dim=-1).square().mean(-1).sqrt()}
            for name, adjoint in (("dE_dh", truth.dE_dh), ("delta", truth.delta)):
                expected[f"{name}/log10_norm"] = (adjoint * 20).norm(dim=-1).square().mean(-1).sqrt().log10()
            for name, curve in expected.items():
                np.testing.assert_allclose(snapshot.timesteps[name][run][:, out:], curve, rtol=1e-5, atol=1e-6)
            last = backpropagate(w, x[out:], own_y[-1:], phi, loss, "mean").dE_dh[0]
            curve = last.norm(dim=-1).square().mean(-1).sqrt().log10().numpy()[::-1][:60]
            fitted = np.polyfit(np.arange(len(curve)), curve, 1)[0]
            assert scalars["dE_dh/slope"] == pytest.approx(fitted, rel=1e-6), "of E_T alone"
    assert len(seen) > 2, "true lengths should differ between runs and mini-batches"


def test_a_run_with_a_length_of_its_own_is_bitwise_the_run_alone():
    values = {
        "task.name": "addition",
        "task.length": 50,
        "training.updates": 8,
        "training.log_every": 4,
        "clip.name": "norm",
    }
    values |= {"eval.every": 8, "eval.sequences": 100}
    configs = [make_config(values | {"seed": seed, "init.scale": 1.0 + seed}) for seed in range(3)]
    together = list(train(configs))
    for run, config in enumerate(configs):
        for mine, shared in zip(train([config]), together, strict=True):
            out = mine.late[0]
            assert out == shared.late[run]
            for name, numbers in mine.scalars.items():
                np.testing.assert_array_equal(numbers[0], shared.scalars[name][run], err_msg=name)
            for name, series in mine.timesteps.items():
                np.testing.assert_array_equal(series[0][:, out:], shared.timesteps[name][run][:, out:], err_msg=name)


def test_evaluation_weighs_every_sequence_by_its_own_length():
    """Against the mean over mini-batches of each alone."""
    config = make_config(RANGE | {"eval.every": 1, "eval.sequences": 250, "training.updates": 0})
    [snapshot] = train([config])
    init_rng, _, root = vectorize.streams(0)
    task = vectorize.make_task(config.task)
    w = weights(vectorize.stack_parameters([config], task, [init_rng], torch.float64, "cpu"), (0,))
    source = vectorize.MiniBatches(task, [vectorize.evaluation_rng(root, 0)], 100, torch.float64, "cpu")
    losses = []
    for count in (100, 100, 50):
        x, y = (t[0].clone() for t in source.draw())
        out = 0 if source.late is None else int(source.late)
        losses.append(
            count * backpropagate(w, x[out:, :count], y[out:, :count], "tanh", "cross entropy", "mean").objective
        )
    assert snapshot.scalars["eval/loss"][0] == pytest.approx(sum(losses).item() / 250, rel=1e-10)


def test_evaluation_at_other_lengths():
    """eval/error_L<k> is what a run of task.length=k with these parameters would say; eval/error and the training do not move."""
    values = {"task.length": 20, "training.updates": 6, "training.log_every": 3, "eval.every": 3, "eval.sequences": 200}
    plain = list(train([make_config(values)]))
    both = list(train([make_config(values | {"eval.lengths": [10, 30]})]))
    for a, b in zip(plain, both, strict=True):
        assert set(b.scalars) - set(a.scalars) == {f"eval/{name}_L{k}" for name in ("loss", "error") for k in (10, 30)}
        for name, numbers in a.scalars.items():
            np.testing.assert_array_equal(numbers, b.scalars[name])
    theta = vectorize.stack_parameters([make_config(values)], vectorize.make_task(make_config(values).task),
                                       [vectorize.streams(0)[0]], torch.float32, "cpu")  # fmt: skip
    task = vectorize.make_task(make_config({"task.length": 30}).task)
    source = vectorize.MiniBatches(
        task, [vectorize.evaluation_rng(vectorize.streams(0)[2], 0, 30)], 100, torch.float32, "cpu"
    )
    errors = []
    for _ in range(2):
        x, y = (t[0].clone() for t in source.draw())
        o = backpropagate(weights(theta, (0,)), x, y, "tanh", "cross entropy", "mean").o[-1:]
        errors.append(task.wrong(o, y).double().mean().item())
    assert both[0].scalars["eval/error_L30"][0] == pytest.approx(np.mean(errors))


# ----------------------------------------------------------------------------------------------------- files and config


def test_files_and_frames_hold_every_record_at_its_own_length(tmp_path: Path):
    """steps.jsonl says "T" where it differs, and .timesteps has t = 1..T and lag = T - t of each record; steps and runs are as ever."""
    config, directory = make_config(), tmp_path / "a"
    directory.mkdir()
    series, layers = list(probes.series_names(Elman)), 2
    info = RunInfo("0123456789", "s", directory, container(config), "n", [])
    sink = StoreSink(info, {"series": series, "layers": layers, "T": 6, "baseline": {}})
    rng, written = np.random.default_rng(0), {}
    for step, length in ((0, 6), (10, 4), (20, 1), (30, 6)):
        written[step] = rng.standard_normal((len(series), layers, length)).astype(np.float32)
        sink.log(Row(step, {"train/loss": 1.0}, dict(zip(series, written[step], strict=True))))
    sink.finish("completed", {})
    lines = [json.loads(line) for line in (directory / "steps.jsonl").read_text().splitlines()]
    assert [line.get("T") for line in lines] == [None, 4, 1, None]

    loaded = results.load(directory)
    assert "T" not in loaded.steps
    assert loaded.runs["T"].tolist() == [6]
    assert loaded.steps["step"].tolist() == [0, 10, 20, 30]
    frame = loaded.timesteps
    assert len(frame) == layers * (6 + 4 + 1 + 6)
    for step, block in written.items():
        length = block.shape[-1]
        for layer in (1, 2):
            rows = frame[(frame["step"] == step) & (frame["layer"] == layer)]
            assert rows["t"].tolist() == list(range(1, length + 1))
            assert rows["lag"].tolist() == list(range(length - 1, -1, -1))
            for k, name in enumerate(series):
                np.testing.assert_array_equal(rows[name], block[k, layer - 1])

    data = (directory / "timesteps.f32").read_bytes()
    (directory / "timesteps.f32").write_bytes(
        data[:-1]
    )  # the last record's block is torn, which a run that has completed cannot leave
    with pytest.raises(results.ResultsError, match="3 of 4 records"):
        results.load(directory)


def test_a_length_or_a_range():
    ranged = make_config({"task.length_range": [50, 200]})
    assert problems(ranged) == []
    assert run_id(ranged) == run_id(make_config({"task.length_range": [50, 200], "task.length": 70}))
    assert run_id(ranged) not in (run_id(make_config()), run_id(make_config({"task.length_range": [50, 201]})))
    assert static_key(ranged) != static_key(make_config())
    assert hash(static_key(ranged))
    [line] = problems(ranged, ["task.length=70", "task.length_range=[50,200]"])
    assert line == "task.length=100 and task.length_range=[50,200]: give one of the two"
    for bad in ([200, 50], [50], [0, 9], [10, 20, 30]):
        [line] = problems(make_config({"task.length_range": bad}))
        assert line.startswith("task.length_range=[")
        assert line.endswith("must be null or [a,b], whole numbers 1 <= a <= b")
    for bad in ([], [10, 10], [0]):
        assert len(problems(make_config({"eval.lengths": bad}))) == 1


def test_keys_that_a_task_ignores_rename_no_run():
    plain = run_id(make_config())
    assert run_id(make_config({"task.positions": 9, "task.values": 7})) == plain
    assert run_id(make_config({"eval.lengths": [10]})) == plain
    copying = {"task.name": "copying"}
    assert run_id(make_config(copying | {"task.positions": 9})) != run_id(make_config(copying))


@pytest.mark.slow
def test_addition_learns():
    """L = 20, clipped gradients: every run gets below the loss of the constant 1/2, and most far below."""
    values = {"task.name": "addition", "task.length": 20, "clip.name": "norm", "optimizer.lr": 0.1, "model.hidden": 32}
    values |= {"training.updates": 4000, "training.log_every": 1000, "eval.every": 4000, "eval.sequences": 1000}
    *_, last = train([make_config(values | {"seed": seed}) for seed in range(4)])
    assert (last.scalars["eval/loss"] < 0.75 / 24).all()
    assert np.median(last.scalars["eval/loss"]) < 0.4 / 24
