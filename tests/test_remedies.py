"""The remedies inside the training loop: what is logged, what stays frozen, who does not notice whom."""

import math

import numpy as np
import pytest
import torch
from oracle import PHI, make_config, weights

from rnn_lab import bptt, clipping, vectorize
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import Elman
from rnn_lab.config import Config, problems, run_id, static_key
from rnn_lab.tasks import TemporalOrder
from rnn_lab.training import train

REMEDIES = [
    {"clip.name": "agc"},
    {"clip.name": "autoclip"},
    {"regularizer.name": "omega", "clip.name": "norm"},
    {"training.truncation": 4},
    {"optimizer.name": "momentum"},
    {"optimizer.name": "rmsprop", "optimizer.lr": 0.001},
    {"optimizer.name": "adam", "optimizer.lr": 0.001},
]
NAMES = ["agc", "autoclip", "omega", "truncation", "momentum", "rmsprop", "adam"]


def short(values: dict | None = None) -> Config:
    return make_config({"task.length": 10, "training.updates": 12, "training.log_every": 1} | (values or {}))


def rows(configs: list[Config]) -> list[dict[int, dict[str, float]]]:
    """Each run's scalars by step."""
    found: list[dict[int, dict[str, float]]] = [{} for _ in configs]
    for s in train(configs):
        for run in np.flatnonzero(s.runs):
            found[run][s.step] = {name: float(v[run]) for name, v in s.scalars.items()}
    return found


def plain_loop(config: Config) -> list[dict[str, float]]:
    """autograd and torch.optim on the run's own mini-batches; alpha Omega with detached states joins the loss."""
    init_rng, data_rng, _ = vectorize.streams(config.seed)
    task, seen = TemporalOrder(config.task.length), []
    w = {
        name: t.requires_grad_()
        for name, t in weights(
            vectorize.stack_parameters([config], task, [init_rng], torch.float64, "cpu"), (0,)
        ).items()
    }
    o = config.optimizer
    optimizer = {
        "sgd": lambda: torch.optim.SGD(w.values(), lr=o.lr),
        "momentum": lambda: torch.optim.SGD(w.values(), lr=o.lr, momentum=o.momentum),
        "rmsprop": lambda: torch.optim.RMSprop(w.values(), lr=o.lr, alpha=o.decay, eps=o.epsilon),
        "adam": lambda: torch.optim.Adam(w.values(), lr=o.lr, betas=(o.beta1, o.beta2), eps=o.epsilon),
    }[o.name]()
    source = vectorize.MiniBatches(task, [data_rng], config.training.batch_size, torch.float64, "cpu")
    found = []
    for _ in range(config.training.updates + 1):
        x, y = (batch[0] for batch in source.draw())
        h, states = x.new_zeros(x.shape[1], w["W1"].shape[0]), []
        for t, x_t in enumerate(x):
            if config.training.truncation is not None and t == len(x) - config.training.truncation:
                h = h.detach()
            a = x_t @ w["U1"] + h @ w["W1"] + w["b1"]
            if config.training.truncation is not None and t < len(x) - config.training.truncation:
                a = a.detach()
            h = PHI[config.model.activation](a)
            states.append((a, h))
        loss = torch.nn.functional.cross_entropy(h @ w["V"] + w["c"], y[0])
        optimizer.zero_grad()
        row = {"train/loss": loss.item()}
        if config.regularizer.name == "omega":
            delta = torch.stack(torch.autograd.grad(loss, [a for a, _ in states], retain_graph=True))
            d = torch.stack(torch.autograd.grad(loss, [h for _, h in states], retain_graph=True))
            counts = d.square().sum(-1) >= 1e-20
            ratio = (delta @ w["W1"].T).square().sum(-1) / d.square().sum(-1)
            omega = (ratio - 1)[counts].square().mean()
            row["omega"] = omega.item()
            loss = loss + config.regularizer.alpha * omega
        loss.backward()
        g = torch.cat([t.grad.flatten() for t in w.values() if t.grad is not None])
        row["grad/norm"] = g.norm().item()
        seen.append(row["grad/norm"])
        level = {
            "none": math.inf,
            "norm": config.clip.threshold,
            "autoclip": np.percentile(seen, config.clip.percentile),
        }
        torch.nn.utils.clip_grad_norm_(
            w.values(), level.get(config.clip.name, math.inf) * (1 + 1e-6 / row["grad/norm"])
        )
        if config.clip.name == "agc":
            for name, t in w.items():
                if name[0] in "UWV" and t.grad is not None:
                    bound = config.clip.factor * t.detach().norm(dim=0).clamp(min=1e-3)
                    t.grad *= (bound / t.grad.norm(dim=0)).clamp(max=1)
        row["grad/norm_clipped"] = torch.cat([t.grad.flatten() for t in w.values() if t.grad is not None]).norm().item()
        found.append(row)
        optimizer.step()
    return found


@pytest.mark.parametrize("remedy", REMEDIES, ids=NAMES)
def test_every_remedy_trains_as_a_plain_loop_does(remedy):
    config = short({"training.dtype": "float64", "model.hidden": 8, "init.scale": 1.5} | remedy)
    found = rows([config])[0]
    for step, expected in enumerate(plain_loop(config)):
        for name, value in expected.items():
            assert found[step][name] == pytest.approx(value, rel=1e-7), (name, step)


@pytest.mark.parametrize("remedy", REMEDIES, ids=NAMES)
def test_a_run_is_bitwise_the_same_in_company_and_however_often_it_is_recorded(remedy):
    base = {"task.length": 100, "training.updates": 6} | remedy
    alone = rows([short(base | {"seed": 1})])[0]
    company = rows([short(base | {"seed": s, "init.scale": g}) for s, g in ((0, 0.5), (1, 1.0), (2, 3.0))])[1]
    assert alone == company
    seldom = rows([short(base | {"seed": 1, "training.log_every": 6})])[0]
    for name in ("train/loss", "grad/norm", "grad/norm_clipped"):
        assert seldom[6][name] == alone[6][name]


@pytest.mark.parametrize("remedy", REMEDIES, ids=NAMES)
def test_a_diverging_neighbour_is_frozen_and_changes_nothing(remedy):
    """The middle run's parameters overflow; whatever the remedy, its frames end there, and its neighbours go on bit for bit."""
    base = {"task.length": 100, "training.log_every": 5, "model.activation": "relu"} | remedy
    lasting = [short(base | {"seed": s}) for s in (0, 2)]
    dying = short(base | {"seed": 1, "init.scale": 1e3})
    apart, together = rows(lasting), rows([lasting[0], dying, lasting[1]])
    assert [together[0], together[2]] == apart
    assert max(together[1]) < 12
    last = together[1][max(together[1])]
    assert last["grad/nonfinite"] > 0 or not math.isfinite(last["train/loss"])


@pytest.mark.parametrize("clip", clipping.CLIPS)
def test_with_every_clip_a_run_whose_gradient_is_not_finite_diverges_and_counts_it(clip):
    config = short({"clip.name": clip, "model.activation": "linear", "init.scale": 1e5, "task.length": 100})
    found = rows([config])[0]
    assert list(found) == [0]
    assert found[0]["grad/nonfinite"] > 0
    assert not math.isfinite(found[0]["grad/norm"])


def test_omega_is_logged_also_when_off_and_the_same_as_with_alpha_0():
    off = rows([short({"training.updates": 3})])[0]
    on = rows([short({"training.updates": 3, "regularizer.name": "omega", "regularizer.alpha": 0.0})])[0]
    assert [r["omega"] for r in off.values()] == [r["omega"] for r in on.values()]
    assert off[3]["grad/norm"] == on[3]["grad/norm"]


def test_omega_regularises():
    """From a vanishing start (scale 0.5) Omega falls with alpha, and stays without."""
    base = {"task.length": 30, "init.scale": 0.5, "training.updates": 60, "training.log_every": 60, "clip.name": "norm"}
    off = rows([short(base)])[0]
    on = rows([short(base | {"regularizer.name": "omega"})])[0]
    assert on[0]["omega"] == off[0]["omega"]
    assert on[60]["omega"] < 0.8 * off[60]["omega"]


def test_the_truncations_bias_is_against_the_full_gradient_of_the_same_step():
    base = {"training.dtype": "float64", "training.updates": 0, "init.scale": 1.5, "training.kernel": "reference"}
    full, cut = rows([short(base)])[0][0], rows([short(base | {"training.truncation": 2})])[0][0]
    cosine, ratio = cut["truncation/cosine"], cut["grad/norm"] / full["grad/norm"]
    assert cut["truncation/bias"] ** 2 == pytest.approx(1 + ratio**2 - 2 * ratio * cosine)
    assert cut["truncation/bias"] > 0
    assert cut["dE_dh/slope"] == full["dE_dh/slope"], "the probes see the full gradient"
    assert "truncation/bias" not in full


def test_smoothness_is_the_quotient_of_differences_on_one_batch():
    """The gradient of one batch along the last update, from where it began: the largest of six quotients."""
    config = short(
        {"training.dtype": "float64", "training.updates": 4, "probe.smoothness_every": 2, "training.log_every": 4}
    )
    found = rows([config])[0]
    assert [step for step, row in found.items() if "grad/smoothness" in row] == [2, 4]
    init_rng, data_rng, _ = vectorize.streams(config.seed)
    task = TemporalOrder(10)
    theta = vectorize.stack_parameters([config], task, [init_rng], torch.float64, "cpu")
    net = bptt.Net(Elman(ACTIVATIONS["tanh"]), task.loss)
    source = vectorize.MiniBatches(task, [data_rng], 20, torch.float64, "cpu")

    def gradient(x, y):
        buffers, g = bptt.Buffers(theta, net.cell, task.steps, 20), theta.like()
        _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
        bptt.backward(theta, x, dE_do, net, buffers, g)
        return g.flat

    before = theta.flat
    for step in range(5):
        x, y = source.draw()
        now = gradient(x, y)
        if step in (2, 4):
            here = theta.flat.clone()
            theta.flat.copy_(before)
            g, quotients = gradient(x, y).clone(), []
            for s in (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1):
                theta.flat.copy_(before + s * (here - before))
                quotients.append(((gradient(x, y) - g).norm() / (s * (here - before).norm())).item())
            theta.flat.copy_(here)
            assert len(set(quotients)) > 1
            assert found[step]["grad/smoothness"] == pytest.approx(max(quotients), rel=1e-7)
        before = theta.flat.clone()
        theta.flat.sub_(config.optimizer.lr * now)


IGNORED = [
    ({}, {"clip.threshold": 2.0, "clip.factor": 0.1, "clip.percentile": 50.0, "regularizer.alpha": 1.0}),
    ({}, {"optimizer.momentum": 0.5, "optimizer.decay": 0.5, "optimizer.beta1": 0.5, "optimizer.epsilon": 0.5}),
    ({"clip.name": "agc"}, {"clip.threshold": 2.0, "clip.percentile": 50.0}),
    ({"clip.name": "autoclip"}, {"clip.threshold": 2.0, "clip.factor": 0.5}),
    ({"optimizer.name": "adam"}, {"optimizer.momentum": 0.5, "optimizer.decay": 0.5}),
]


@pytest.mark.parametrize(("chosen", "ignored"), IGNORED)
def test_keys_that_an_option_ignores_make_no_new_run(chosen, ignored):
    assert run_id(short(chosen)) == run_id(short(chosen | ignored))


@pytest.mark.parametrize(
    ("chosen", "key", "value"),
    [
        ({"clip.name": "agc"}, "clip.factor", 0.1),
        ({"clip.name": "autoclip"}, "clip.percentile", 50.0),
        ({"regularizer.name": "omega"}, "regularizer.alpha", 2.0),
        ({"optimizer.name": "momentum"}, "optimizer.momentum", 0.5),
        ({"optimizer.name": "rmsprop"}, "optimizer.decay", 0.5),
        ({"optimizer.name": "rmsprop"}, "optimizer.epsilon", 0.5),
        ({"optimizer.name": "adam"}, "optimizer.beta1", 0.5),
        ({"optimizer.name": "adam"}, "optimizer.beta2", 0.5),
    ],
)
def test_keys_that_matter_make_a_new_run_of_the_same_program(chosen, key, value):
    one, other = short(chosen), short(chosen | {key: value})
    assert run_id(one) != run_id(other) != run_id(short())
    assert static_key(one) == static_key(other) != static_key(short())


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"clip.percentile": 101.0}, "clip.percentile"),
        ({"clip.factor": 0.0}, "clip.factor"),
        ({"regularizer.alpha": -1.0}, "regularizer.alpha"),
        ({"regularizer.name": "l2"}, "regularizer.name"),
        ({"optimizer.momentum": 1.0}, "optimizer.momentum"),
        ({"optimizer.epsilon": 0.0}, "optimizer.epsilon"),
        ({"optimizer.name": "adamw"}, "optimizer.name"),
        ({"training.truncation": 0}, "training.truncation"),
        ({"training.truncation": 5, "regularizer.name": "omega"}, "training.truncation"),
    ],
)
def test_bad_values_are_told_in_one_line_that_names_the_key(values, word):
    [line] = problems(short(values))
    assert line.startswith(word)
