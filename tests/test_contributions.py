"""The lecture's double sum against autograd through nets in which every step has a copy of W, U and b of its own, a loss at a time."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import CELLS, LOSS, make_config, random_parameters, weights
from torch import Tensor

from rnn_lab import bptt, probes, results
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Cell, Elman, Leaky, Own
from rnn_lab.config import Config
from rnn_lab.losses import softmax_cross_entropy, squared_error
from rnn_lab.parameters import Parameters
from rnn_lab.recording.store import write_array
from rnn_lab.runner import Job, run_program
from rnn_lab.training import train

T, B, SIZES, LEAK = 5, 3, (2, 4, 3), 0.4


class Odd:
    """A cell of a user's whose W acts twice."""

    def step(self, z: Tensor, h: Tensor, W: Tensor) -> Tensor:
        return h + 0.3 * torch.tanh(z + h @ (W - W.mT))


STEPS = CELLS | {"own": (lambda z, s, W, phi, leak: (Odd().step(z, s[0], W),), 1)}


def make(name: str) -> Cell:
    leak = torch.tensor(LEAK, dtype=torch.float64)
    phi = ACTIVATIONS["tanh"]
    return {"elman": Elman(phi), "leaky": Leaky(phi, leak), "lstm": LSTM(), "gru": GRU(), "own": Own(Odd())}[name]


def case(name: str, runs: tuple[int, ...], L: int, layers: int, late: Tensor | None = None, reduction: str = "mean"):
    """A net after a forward and a scaled backward pass: what the probe is given, the full gradient, and what it found."""
    cell = make(name)
    theta, draw = random_parameters(runs, SIZES, layers, gates=cell.gates, gain=1.3), torch.Generator().manual_seed(1)
    x = torch.randn(*runs, T, B, SIZES[0], generator=draw, dtype=torch.float64)
    y = torch.randint(SIZES[2], (*runs, L, B), generator=draw)
    net = bptt.Net(cell, softmax_cross_entropy, L, reduction)
    buffers, full = bptt.Buffers(theta, cell, T, B), theta.like()
    buffers.late = late
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, late)
    adjoints = bptt.scaled_backward(theta, x, dE_do, net, buffers, full)
    found = probes.contributions(x, theta, dE_do, net, buffers)
    return theta, x, y, full, probes.summand_series(x, theta, cell, buffers, adjoints), *found


def copies(w: dict[str, Tensor], x: Tensor, cell: str) -> tuple[list[list[dict[str, Tensor]]], list[Tensor]]:
    """A forward pass in which every step has copies of a layer's W, U, b: copies[layer][k]; and the outputs."""
    step, blocks = STEPS[cell]
    below, found, layer = list(x), [], 1
    while f"W{layer}" in w:
        s, states, own = (x.new_zeros(x.shape[1], SIZES[1]),) * blocks, [], []
        for x_k in below:
            own.append({p: w[f"{p}{layer}"].clone().requires_grad_() for p in "WUb"})
            *c, h = step(x_k @ own[-1]["U"] + own[-1]["b"], s, own[-1]["W"], "tanh", LEAK)
            s = (h, *c)
            states.append(h)
        below, layer = states, layer + 1
        found.append(own)
    return found, [h @ w["V"] + w["c"] for h in below]


def pairs(w: dict[str, Tensor], x: Tensor, y: Tensor, cell: str, reduction: str = "mean") -> dict[tuple[str, int], Any]:
    """For each parameter and layer (L, T, in, columns): step k's summand of dE_t/dW, 0 for k > t. E_t as in the objective."""
    used, o = copies(w, x, cell)
    L = len(y)
    E = [LOSS["cross entropy"](*pair) / (B * (L if reduction == "mean" else 1)) for pair in zip(o[-L:], y, strict=True)]

    def summands(E_t: Tensor, copy: Tensor) -> np.ndarray:
        return torch.autograd.grad(E_t, copy, retain_graph=True, materialize_grads=True, allow_unused=True)[0].numpy()

    return {
        (p, n): np.array([[summands(E_t, copy[p]) for copy in own] for E_t in E])
        for n, own in enumerate(used)
        for p in "WUb"
    }


def log10_norm(matrices: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(np.linalg.norm(matrices, axis=(-2, -1)))


def expected_rows(S: np.ndarray) -> np.ndarray:
    """All that the probe says of one parameter of one layer, (L + 4, T)."""
    L, steps = S.shape[:2]
    lag = np.arange(steps - L, steps)[:, None] - np.arange(steps)
    largest_first = range(steps - 1, -1, -1)
    by_lag = [S[lag == m].sum(0) for m in largest_first]
    beyond = [S[lag >= m].sum(0) for m in largest_first]
    by_t = np.pad(log10_norm(S.sum(1)), (steps - L, 0), constant_values=np.nan)
    return np.vstack([np.where(lag < 0, np.nan, log10_norm(S)), by_t, *map(log10_norm, (S.sum(0), by_lag, beyond))])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("L", [1, T])
@pytest.mark.parametrize("cell", STEPS)
def test_every_pair_and_every_sum_over_pairs(cell, L, layers):
    for runs, run in (((), ()), ((2, 3), (1, 2))):
        theta, x, y, _, _, found, total = case(cell, runs, L, layers)
        assert found.shape == (*runs, 3, layers, L + 4, T)
        for (name, n), S in pairs(weights(theta, run), x[run], y[run], cell).items():
            rows = found[run]["WUb".index(name), n]
            np.testing.assert_allclose(rows, expected_rows(S), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(getattr(total.layers[n], name)[run], S.sum((0, 1)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("L", [1, T])
@pytest.mark.parametrize("cell", STEPS)
def test_the_summands_add_up_to_the_gradient(cell, L, reduction, runs):
    """And, added up over t alone, to the terms dW/log10_norm and dU/log10_norm of the whole objective."""
    _, _, _, full, series, found, total = case(cell, runs, L, 2, reduction=reduction)
    scalars = probes.contribution_scalars(found, total, full, 2)
    assert (scalars["contributions/residual"] < 1e-14).all()
    for row, name in enumerate(("dW/log10_norm", "dU/log10_norm")):
        torch.testing.assert_close(found[..., row, :, L + 1, :], series[name], rtol=1e-9, atol=1e-9)
    broken = total.like()
    broken.flat.copy_(1.001 * total.flat)
    off = probes.contribution_scalars(found, broken, full, 2)["contributions/residual"]
    torch.testing.assert_close(off, torch.full(runs, 1e-3, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("lag", [0, 2, T - 2, T - 1, T + 5])
def test_the_long_term_share_is_of_the_pairs_beyond_the_lag(lag):
    theta, x, y, full, _, found, total = case("elman", (), T, 2)
    share = probes.contribution_scalars(found, total, full, lag)["contributions/long_term_share"]
    beyond = np.arange(T)[:, None] - np.arange(T) > lag
    S = [S for (name, _), S in pairs(weights(theta), x, y, "elman").items() if name == "W"]
    part, whole = (np.linalg.norm([s[chosen].sum(0) for s in S]) for chosen in (beyond, beyond | True))
    np.testing.assert_allclose(share, part / whole, rtol=1e-9)
    assert (share > 0) == (lag < T - 2)  # k = 1 adds nothing to dE/dW: h_0 = 0


@pytest.mark.parametrize("L", [1, T])
@pytest.mark.parametrize("cell", STEPS)
def test_a_run_that_starts_late_is_the_shorter_run(cell, L):
    """The pairs of its own steps are those of its last steps alone; the others are exact zeros."""
    late, layers = torch.tensor([0, 2]), 2
    theta, x, y, _, _, found, _ = case(cell, (2,), L, layers, late)
    for run, wait in enumerate(late.tolist()):
        targets = y[run][wait:] if L > 1 else y[run]
        for (name, n), S in pairs(weights(theta, (run,)), x[run][wait:], targets, cell).items():
            rows = found[run, "WUb".index(name), n]
            own = rows[wait if L > 1 else 0 :, wait:]
            np.testing.assert_allclose(own, expected_rows(S), rtol=1e-9, atol=1e-9)
            assert not torch.isfinite(rows[:-4, :wait]).any()
            assert rows[-2, :wait].isneginf().all()


@pytest.mark.parametrize("w", [1e-3, 1e3])
@pytest.mark.parametrize("late", [None, torch.tensor(40)])
def test_contributions_are_of_any_size(w, late):
    """One linear unit in float32: |dE_t/db| at k is |dE_t/do_t V| w^(t-k), 1e-297 or 1e297 at a lag of 99."""
    steps, batch = 100, 2
    theta = Parameters.zeros((), 1, 1, 1)
    theta.layers[0].W.fill_(w)
    theta.layers[0].U.fill_(2)
    theta.V.fill_(0.5)
    x, y = torch.zeros(steps, batch, 1), torch.ones(steps, batch, 1)
    x[-1] = 1  # where w > 1 any other input would make a state that float32 can't hold
    net = bptt.Net(Elman(ACTIVATIONS["linear"]), squared_error, steps)
    buffers = bptt.Buffers(theta, net.cell, steps, batch)
    buffers.late = late
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net, late)
    found, _ = probes.contributions(x, theta, dE_do, net, buffers)
    t, k = np.arange(steps)[:, None], np.arange(steps)
    begun = (t <= steps - 2) & (k <= t) & (k >= (0 if late is None else 40))  # at T itself o = y: nothing to learn
    expected = np.log10(2 * 0.5 / (60 if late is not None else steps)) + (t - k) * math.log10(w)
    np.testing.assert_allclose(found[2, 0, :-4][begun], expected[begun], rtol=1e-6, atol=1e-6)
    longest = 59 if late is not None else 99
    assert found[2, 0, -2, steps - longest].item() == pytest.approx(expected[longest - 1, 0], abs=1e-5)
    assert found[2, 0, steps - 1].isneginf().all()


def test_losses_of_very_different_size_are_summed():
    """E_T 400 decades below the others: at every lag that the others have, the sums are theirs."""
    theta, draw = random_parameters((), SIZES), torch.Generator().manual_seed(1)
    x, dE_do = (torch.randn(T, B, size, generator=draw, dtype=torch.float64) for size in (SIZES[0], SIZES[2]))
    net = bptt.Net(make("elman"), softmax_cross_entropy, T)
    buffers = bptt.Buffers(theta, net.cell, T, B)
    bptt.forward(theta, x, net, buffers)
    small, none = dE_do * 1e100, dE_do * 1e100
    small[-1], none[-1] = dE_do[-1] * 1e-300, 0
    found, without = (probes.contributions(x, theta, each, net, buffers)[0] for each in (small, none))
    torch.testing.assert_close(found[..., -2:, 1:], without[..., -2:, 1:], rtol=1e-12, atol=0)
    assert (found[1:, 0, -2, 0] < -298).all()


def test_one_step_alone():
    """T = 1: one pair. h_0 = 0, so W has no part in it."""
    theta, draw = random_parameters((), SIZES), torch.Generator().manual_seed(1)
    x, y = torch.randn(1, B, SIZES[0], generator=draw, dtype=torch.float64), torch.tensor([[0, 1, 2]])
    net, full = bptt.Net(make("elman"), softmax_cross_entropy), theta.like()
    buffers = bptt.Buffers(theta, net.cell, 1, B)
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    bptt.backward(theta, x, dE_do, net, buffers, full)
    found, total = probes.contributions(x, theta, dE_do, net, buffers)
    assert found.shape == (3, 1, 5, 1)
    assert found[0].isneginf().all()
    norms = [torch.linalg.matrix_norm(g).log10() for g in (full.layers[0].U, full.layers[0].b)]
    torch.testing.assert_close(found[1:, 0, :, 0], torch.stack(norms).unsqueeze(-1).expand(2, 5))
    scalars = probes.contribution_scalars(found, total, full, 0)
    assert scalars["contributions/residual"] < 1e-15
    assert scalars["contributions/long_term_share"].isnan()


# -------------------- from the loop to the reader

EVERY_STEP = {
    "task.name": "memorization",
    "task.length": 2,
    "task.positions": 2,
    "model.hidden": 4,
    "tracker.name": "none",
}
EVERY_STEP |= {"training.updates": 5, "training.batch_size": 3, "training.log_every": 4, "training.dtype": "float64"}


def recorded(directory: Path, values: dict[str, Any]) -> Config:
    config = make_config(EVERY_STEP | values)
    directory.mkdir()
    progress: Any = SimpleNamespace(advance=lambda *counts: None)
    [outcome] = run_program([Job(config, directory, {})], progress, 1e9)
    assert outcome.status == "completed"
    return config


@pytest.mark.parametrize("values", [{}, {"task.name": "temporal_order", "task.length": 10}])
def test_what_a_run_directory_says(tmp_path, values):
    """Rows are those of log_every (0, 4), of the probe (0, 2, 4), and the last (5); by_k is the series of the same row."""
    config = recorded(tmp_path / "run", values | {"probe.contributions_every": 2, "model.layers": 2})
    loaded = results.load(tmp_path / "run")
    steps = loaded.steps.set_index("step")
    assert list(steps.index) == [0, 2, 4, 5]
    assert (steps["contributions/residual"] < 1e-14).all()
    assert results.contributions(tmp_path / "run").step == 5
    for snapshot in train([config]):
        found = results.contributions(tmp_path / "run", snapshot.step)
        T, L = (6, 6) if not values else (10, 1)
        assert found.log10_norm["W"].shape == (2, L, T)
        rows = loaded.timesteps[loaded.timesteps["step"] == snapshot.step].sort_values(["layer", "t"])
        for name in "WU":
            by_k = rows[f"d{name}/log10_norm"].to_numpy().reshape(2, T)
            np.testing.assert_allclose(found.by_k[name], by_k, rtol=1e-5, atol=1e-5)
        assert snapshot.contributions is not None
        for p, name in enumerate("WUb"):
            rows = snapshot.contributions[0, p]
            np.testing.assert_array_equal(found.log10_norm[name], rows[:, :L])
            np.testing.assert_array_equal(found.by_t[name], rows[:, L])
            np.testing.assert_array_equal(found.by_k[name], rows[:, L + 1])
            np.testing.assert_array_equal(found.by_lag[name], rows[:, L + 2, ::-1])
            np.testing.assert_array_equal(found.beyond[name], rows[:, L + 3, ::-1])
        whole = np.linalg.norm(10.0 ** found.beyond["W"][:, 0])
        share = np.linalg.norm(10.0 ** found.beyond["W"][:, T // 2 + 1]) / whole
        assert steps.loc[snapshot.step, "contributions/long_term_share"] == pytest.approx(share, rel=1e-5)


def test_off_nothing_is_written_and_no_run_is_another(tmp_path):
    """Measuring does not change a bit of training."""
    recorded(tmp_path / "off", {})
    recorded(tmp_path / "on", {"probe.contributions_every": 4})
    assert not (tmp_path / "off" / "contributions").exists()
    off, on = (results.load(tmp_path / name).steps.set_index("step") for name in ("off", "on"))
    assert list(off.index) == list(on.index)
    assert (off["train/loss"] == on["train/loss"]).all()
    assert (off["grad/norm"] == on["grad/norm"]).all()
    assert "contributions/residual" in off
    assert off["contributions/residual"].isna().all()


def test_runs_of_their_own_lengths_are_cut_to_them(tmp_path):
    values = {"task.length_range": [2, 5], "training.updates": 20, "probe.contributions_every": 1}
    recorded(tmp_path / "run", values)
    timesteps = results.load(tmp_path / "run").timesteps
    lengths = timesteps.groupby("step")["t"].max()
    assert lengths.nunique() > 2
    for step, length in lengths.items():
        found = results.contributions(tmp_path / "run", int(str(step)))
        assert found.log10_norm["W"].shape == (1, length, length)
        assert np.isfinite(found.by_k["U"]).all()
        assert np.isfinite(found.by_lag["U"]).all()


def test_what_is_not_there_is_said(tmp_path):
    recorded(tmp_path / "off", {})
    with pytest.raises(results.ResultsError, match=r"off: no contributions \(probe\.contributions_every\)"):
        results.contributions(tmp_path / "off")
    recorded(tmp_path / "on", {"probe.contributions_every": 4})
    with pytest.raises(results.ResultsError, match="at step 3; they are at 0, 4, 5"):
        results.contributions(tmp_path / "on", 3)


def test_a_layout_of_another_version_is_refused(tmp_path):
    """It had a row less: read as ours, every number would be another's."""
    recorded(tmp_path / "run", {"probe.contributions_every": 4})
    path = tmp_path / "run" / "contributions" / "0.npy"
    write_array(path, np.load(path)[:, :, 1:])
    with pytest.raises(results.ResultsError, match="another version of rnn_lab wrote this"):
        results.contributions(tmp_path / "run", 0)


def test_a_run_that_starts_again_has_none_of_before(tmp_path):
    (tmp_path / "run" / "contributions").mkdir(parents=True)
    write_array(tmp_path / "run" / "contributions" / "7.npy", np.zeros((3, 1, 5, 1)))
    config = make_config(EVERY_STEP | {"training.updates": 0, "probe.contributions_every": 1})
    run_program([Job(config, tmp_path / "run", {})], SimpleNamespace(advance=lambda *counts: None), 1e9)  # type: ignore[arg-type]
    assert [file.name for file in (tmp_path / "run" / "contributions").iterdir()] == ["0.npy"]
