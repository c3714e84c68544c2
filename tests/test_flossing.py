"""Gradient flossing: its gradient by finite differences, and that exponents do come nearer to 0."""

import numpy as np
import pytest
import torch
from oracle import make_config, random_parameters
from torch import Tensor

from rnn_lab import flossing, jacobians, lyapunov, vectorize
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Cell, Elman, Own
from rnn_lab.parameters import Layer, Parameters
from rnn_lab.training import Training, train

SMALL = {
    "task.length": 20,
    "model.hidden": 20,
    "training.batch_size": 4,
    "training.log_every": 5,
    "training.updates": 0,
}
FLOSS = {"flossing.name": "before", "flossing.steps": 40, "flossing.exponents": 5, "flossing.lr": 0.01}


def inputs(runs: tuple[int, ...], steps: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((*runs, steps, 3, 2)))


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_gradient_is_that_of_finite_differences(phi, depth):
    """Through the QR, the slopes phi' and the trajectory; of W, U and b of every layer."""
    theta, x = random_parameters((), (2, 4, 1), depth), inputs((), 12)
    weights = [w for layer in theta.layers for w in layer]

    def loss(*weights: Tensor) -> Tensor:
        layers = [Layer(*weights[i : i + 3]) for i in range(0, len(weights), 3)]
        return flossing.loss(layers, Elman(ACTIVATIONS[phi]), x, 3)

    assert torch.autograd.gradcheck(loss, [w.clone().requires_grad_() for w in weights])


class Own1:
    """A user's cell: W acts twice."""

    def step(self, z: Tensor, h: Tensor, W: Tensor) -> Tensor:
        return torch.tanh(z + torch.sin(h @ W) @ W)


@pytest.mark.parametrize("cell", [LSTM(), GRU(), Own(Own1())], ids=["lstm", "gru", "own"])
def test_the_gradient_of_every_cell_is_that_of_finite_differences(cell):
    """Of all that acts on the state: a second derivative of the cell's step, along the trajectory that it makes."""
    theta, x = random_parameters((), (2, 3, 1), gates=cell.gates), inputs((), 6)
    n = 2 if cell.blocks == 1 else 4  # of an LSTM: more than there are units

    def loss(*weights: Tensor) -> Tensor:
        return flossing.loss([Layer(*weights)], cell, x, n)

    assert torch.autograd.gradcheck(loss, [w.clone().requires_grad_() for w in theta.layers[0]])


def test_the_loss_is_the_mean_square_of_the_first_exponents(runs):
    theta, x = random_parameters(runs, (2, 6, 1)), inputs(runs, 30)
    h = [torch.zeros(*runs, 3, 6).double()]
    J = jacobians.along(theta.layers, Elman(ACTIVATIONS["tanh"]), x.unbind(-3), h)
    exponents = torch.stack(list(lyapunov.log_growth(J))).mean(0)[..., :2]
    torch.testing.assert_close(
        flossing.loss(theta.layers, Elman(ACTIVATIONS["tanh"]), x, 2), exponents.square().mean((-2, -1))
    )


def test_steps_that_a_run_sits_out_do_not_count():
    """One unit, so that no Q can turn before the first step that counts."""
    theta, x, late = random_parameters((2,), (2, 1, 1)), inputs((2,), 10), torch.tensor([0, 4])
    together = flossing.loss(theta.layers, Elman(ACTIVATIONS["tanh"]), x, 1, late)
    own = [Layer(*(w[1] for w in layer)) for layer in theta.layers]
    torch.testing.assert_close(together[1], flossing.loss(own, Elman(ACTIVATIONS["tanh"]), x[1, 4:], 1))
    assert together[1] != flossing.loss(theta.layers, Elman(ACTIVATIONS["tanh"]), x, 1)[1]


def exponents(theta: Parameters, cell: Cell, x: Tensor, n: int) -> Tensor:
    layers = [Layer(*(w.double() for w in layer)) for layer in theta.layers]
    J = jacobians.along(layers, cell, x.unbind(-3), jacobians.at_rest(layers, cell, x))
    return torch.stack(list(lyapunov.log_growth(J, n))).mean(0)


CASES = [("elman", "tanh", 0.5, 0.2), ("elman", "tanh", 1.0, 0.2), ("elman", "sigmoid", 1.0, 0.2)]


@pytest.mark.parametrize(
    ("cell", "phi", "scale", "left"),
    [*CASES, pytest.param("lstm", "tanh", 1.0, 0.6, marks=pytest.mark.slow), ("gru", "tanh", 1.0, 0.6)],
)
def test_the_first_exponents_come_nearer_to_zero_whatever_the_seed(cell, phi, scale, left):
    """Five seeds; on sequences never seen, ten times the window long."""
    values = SMALL | FLOSS | {"model.name": cell, "model.activation": phi, "init.scale": scale}
    configs = [make_config(values | {"seed": seed}) for seed in range(5)]
    flossed = Training(configs)
    before, task = flossed.theta.flat.clone(), vectorize.make_task(configs[0].task)
    [row] = list(flossed.advance())
    plain = flossed.theta.like()
    plain.flat.copy_(before)
    symbols = np.random.default_rng(9).integers(task.inputs, size=(5, 200, 2))
    x = torch.eye(task.inputs).double()[torch.from_numpy(symbols)]
    mean_square = [exponents(theta, flossed.net.cell, x, 5).square().mean((-2, -1)) for theta in (plain, flossed.theta)]
    assert (mean_square[1] < left * mean_square[0]).all(), mean_square
    assert (row.scalars["flossing/loss_last"] < left * row.scalars["flossing/loss_first"]).all()
    assert np.isnan(row.scalars.get("theory/slope", np.nan)).all()  # no longer random weights
    torch.testing.assert_close(plain.V, flossed.theta.V)


def test_a_run_depends_on_its_own_config_alone():
    values = SMALL | FLOSS | {"flossing.steps": 5, "training.dtype": "float64", "task.length_range": [15, 20]}
    configs = [
        make_config(values | {"seed": seed, "init.scale": 1.0 + seed, "flossing.lr": 0.01 * (1 + seed)})
        for seed in range(3)
    ]
    together = Training(configs)
    list(together.advance())
    for run, config in enumerate(configs):
        alone = Training([config])
        list(alone.advance())
        torch.testing.assert_close(together.theta.flat[run], alone.theta.flat[0], rtol=1e-7, atol=1e-9)


def test_training_sees_the_same_data_and_off_changes_nothing():
    values = {**SMALL, "training.updates": 10}
    plain = {row.step: row for row in train([make_config(values)])}
    still = {row.step: row for row in train([make_config(values | FLOSS | {"flossing.lr": 0.0, "flossing.every": 3})])}
    assert list(plain) == [0, 5, 10]
    assert list(still) == [0, 3, 5, 6, 9, 10]
    for step, row in plain.items():
        assert row.scalars["train/loss"] == still[step].scalars["train/loss"]
        assert "flossing/loss_first" not in row.scalars
    assert [step for step, row in still.items() if "flossing/loss_first" in row.scalars] == [0, 3, 6, 9]


def test_a_run_that_is_lost_leaves_its_neighbours_alone():
    values = SMALL | FLOSS | {"flossing.steps": 5, "training.updates": 5}
    configs = [make_config(values | {"seed": seed}) for seed in range(3)]
    sound, broken = Training(configs), Training(configs)
    broken.theta.flat[1, :100] = torch.nan
    for training in (sound, broken):
        list(training.advance())
    torch.testing.assert_close(broken.theta.flat[[0, 2]], sound.theta.flat[[0, 2]])
    assert broken.active.tolist() == [True, False, True]


def test_it_is_resumed_where_it_was():
    values = SMALL | FLOSS | {"flossing.steps": 3, "flossing.every": 4, "training.updates": 8}
    whole, part = Training([make_config(values)]), Training([make_config(values)])
    for _ in range(6):
        list(whole.advance())
    for _ in range(4):
        list(part.advance())
    resumed = Training([make_config(values)])
    resumed.restore(part.state())
    for _ in range(2):
        list(resumed.advance())
    assert torch.equal(resumed.theta.flat, whole.theta.flat)
