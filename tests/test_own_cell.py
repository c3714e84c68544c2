"""A user's own cell: the README's script as it stands there, at the command line and against autograd."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import SMALL, end, start
from hydra.core.config_store import ConfigStore
from oracle import random_parameters

from rnn_lab import app, bptt, cells, results
from rnn_lab.config import CELL_NAMES, ConfigError
from rnn_lab.losses import softmax_cross_entropy

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The README's script, saved where it says."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own cell")[1]
    found = re.search(r"as `(experiments/\w+\.py)`:\n\n```python\n(.*?)```", section, re.DOTALL)
    assert found
    path = tmp_path / found[1]
    path.parent.mkdir()
    path.write_text(found[2])
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    return path


def own(script: Path, *arguments: str, status: int = 0) -> tuple[str, str]:
    environment = {"PYTHONPATH": str(ROOT)}
    ended = end(start(*arguments, cwd=script.parent, script=script, environment=environment))
    assert ended.status == status, ended.err
    return ended.out, ended.err


@pytest.mark.slow
def test_it_sweeps_beside_ours_and_is_refused_like_ours(script):
    _, err = own(script, "model=nope", status=2)
    assert err == "model=nope: must be one of antisymmetric, elman, gru, leaky, lstm\n"
    for wrong, name in (("regularizer=omega", "regularizer=omega"), ("training.kernel=numba", "training.kernel=numba")):
        _, err = own(script, "model=antisymmetric", wrong, status=2)
        assert err.startswith(f"{name}: not with model=antisymmetric")
    own(script, "-m", "model=antisymmetric,elman", "seed=0,1", "model.layers=2", *SMALL)
    found = results.load(script.parent / "runs" / "default")
    assert found.runs["status"].tolist() == ["completed"] * 4
    losses = found.runs.pivot(index="seed", columns="model.name", values="train/loss")
    assert (losses["antisymmetric"] != losses["elman"]).all()
    timesteps = found.timesteps.merge(found.runs[["run_id", "model.name"]], on="run_id")
    mine, elmans = (timesteps[timesteps["model.name"] == name] for name in ("antisymmetric", "elman"))
    for column in ("dE_dh/log10_norm", "delta/log10_norm", "h/norm", "dU/log10_norm"):
        assert mine[column].notna().all()
    assert mine["phi_prime/mean"].isna().all()
    assert elmans["phi_prime/mean"].notna().all()
    out, _ = own(script, "-m", "model=antisymmetric", "seed=0,1", "model.layers=2", *SMALL)
    assert "2 of them finished before" in out


@pytest.fixture
def antisymmetric(script: Path) -> Iterator[type]:
    """The class alone; forgotten afterwards."""
    yield runpy.run_path(str(script), run_name="read")["Antisymmetric"]
    CELL_NAMES.remove("antisymmetric")
    del cells.OWN["antisymmetric"]
    del ConfigStore.instance().repo["model"]["antisymmetric.yaml"]


def test_its_gradient_is_autograds(antisymmetric):
    """W is used twice, once transposed."""
    cell = cells.Own(antisymmetric())
    theta = random_parameters((2,), (3, 4, 2))
    x, y = torch.randn(2, 6, 5, 3, dtype=torch.float64), torch.randint(2, (2, 1, 5))
    net, buffers, grads = bptt.Net(cell, softmax_cross_entropy), bptt.Buffers(theta, cell, 6, 5), theta.like()
    _, dE_do = bptt.objective(bptt.forward(theta, x, net, buffers), y, net)
    bptt.backward(theta, x, dE_do, net, buffers, grads)
    (U, W, b), V, c = (t.clone().requires_grad_() for t in theta.layers[0]), theta.V, theta.c
    h = x.new_zeros(2, 5, 4)
    for t in range(6):
        h = h + 0.1 * torch.tanh(x[:, t] @ U + b + h @ (W - W.mT))
    E = torch.nn.functional.cross_entropy((h @ V + c).flatten(0, 1), y.flatten(), reduction="sum") / 5
    for found, expected in zip(grads.layers[0], torch.autograd.grad(E, [U, W, b]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["lstm", "a b", "", "antisymmetric"])
def test_a_name_is_new_and_a_word(antisymmetric, name):
    with pytest.raises(ConfigError, match="a new cell's name"):
        app.register_cell(name, antisymmetric)
