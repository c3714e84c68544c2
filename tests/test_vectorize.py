"""A run is its own config and seed: grouping, random streams, initial parameters, mini-batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from oracle import make_config

from rnn_lab import vectorize
from rnn_lab.cells import kind
from rnn_lab.config import Config
from rnn_lab.parameters import Parameters
from rnn_lab.tasks import TemporalOrder

PRESETS = Path(__file__).parents[1] / "conf" / "preset"


def initial(config: Config, layers: int = 1) -> Parameters:
    """The parameters a run of this config starts from."""
    gates = kind(config.model.name).gates
    theta = Parameters.zeros((), 6, config.model.hidden, 4, layers, torch.float64, gates=gates)
    vectorize.initialise_(theta, config, vectorize.streams(config.seed)[0])
    return theta


def of_preset(name: str, hidden: int = 200) -> Config:
    """The config that conf/preset/<name>.yaml makes, read from that file."""
    content: Any = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml"))
    (defaults,) = content["defaults"]
    values = {f"{group}.{key}": v for group in ("model", "init") for key, v in content[group].items()}
    return make_config({"init.name": defaults["override /init"], "model.hidden": hidden, **values})


def test_runs_that_differ_in_per_run_fields_share_a_program_others_do_not():
    configs = [
        make_config(
            {
                "task.length": length,
                "clip.name": clip,
                "seed": seed,
                "optimizer.lr": lr,
                "init.scale": 1.0 + seed,
                "init.name": init,
            }
        )
        for seed, lr, init in ((0, 0.1, "gaussian"), (1, 0.2, "orthogonal"))
        for length in (10, 20)
        for clip in ("none", "norm")
    ]
    groups = vectorize.programs(configs, max_runs=100)
    assert groups == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_programs_are_cut_to_size_and_hold_every_run_once():
    configs = [make_config({"seed": seed, "task.length": 10 * (1 + seed % 2)}) for seed in range(13)]
    groups = vectorize.programs(configs, max_runs=4)
    assert max(map(len, groups)) == 4
    assert sorted(index for group in groups for index in group) == list(range(13))
    assert all(len({configs[index].task.length for index in group}) == 1 for group in groups)


def test_a_field_without_effect_does_not_keep_runs_apart():
    configs = [make_config({"eval.sequences": n}) for n in (100, 200)]
    assert vectorize.programs(configs, 10) == [[0, 1]]


def test_streams_are_a_function_of_the_seed_and_differ_from_each_other():
    def draws(seed: int) -> list[float]:
        init, train, evaluation = vectorize.streams(seed)
        return [
            init.random(),
            train.random(),
            vectorize.evaluation_rng(evaluation, 0).random(),
            vectorize.evaluation_rng(evaluation, 1).random(),
        ]

    assert draws(7) == draws(7)
    assert len({*draws(0), *draws(1), *draws(2**63 - 1)}) == 12


def test_evaluation_depends_on_the_step_not_on_the_evaluations_before():
    _, _, root = vectorize.streams(3)
    alone = vectorize.evaluation_rng(root, 50).random()
    for step in range(50):
        vectorize.evaluation_rng(root, step).random()
    assert vectorize.evaluation_rng(root, 50).random() == alone


def test_a_seed_gives_the_same_unit_normals_whatever_the_scales():
    one = initial(make_config({"seed": 5}))
    other = initial(make_config({"seed": 5, "init.scale": 3.0, "init.input_scale": 0.5, "init.output_std": 0.25}))
    torch.testing.assert_close(other.layers[0].W, 3 * one.layers[0].W)
    torch.testing.assert_close(other.layers[0].U, 0.5 * one.layers[0].U)
    torch.testing.assert_close(other.V, 0.25 * 50**0.5 * one.V)


@pytest.mark.parametrize("init", ["orthogonal", "identity", "sparse"])
def test_the_kind_of_W_does_not_change_the_other_draws(init):
    one, other = initial(make_config(), 2), initial(make_config({"init.name": init, "init.links": 3}), 2)
    assert not torch.equal(one.layers[0].W, other.layers[0].W)
    for n in range(2):
        assert torch.equal(one.layers[n].U, other.layers[n].U)
    assert torch.equal(one.V, other.V)


def test_orthogonal_and_gaussian_of_one_seed_come_from_one_draw():
    z = initial(make_config({"seed": 9, "init.std": 1.0})).layers[0].W.numpy()
    Q = initial(make_config({"seed": 9, "init.name": "orthogonal"})).layers[0].W.numpy()
    R = Q.T @ z
    np.testing.assert_allclose(np.tril(R, -1), 0, atol=1e-12)
    assert (np.diag(R) > 0).all()


@pytest.mark.parametrize(("model", "gates"), [("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "identity", "sparse"])
def test_each_gate_has_a_W_of_its_own(model, gates, init):
    theta = initial(make_config({"model.name": model, "init.name": init, "init.scale": 0.9}), 2)
    for layer in theta.layers:
        blocks = layer.W.chunk(gates, -1)
        assert len({tuple(W.flatten().tolist()) for W in blocks}) == (1 if init == "identity" else gates)
        for W in blocks:
            assert W.shape == (50, 50)
            if init == "gaussian":
                assert W.std().item() * 50**0.5 == pytest.approx(0.9, rel=0.1)
            elif init == "sparse":
                assert (W.count_nonzero(dim=0) == 15).all()
                assert np.abs(np.linalg.eigvals(W.numpy())).max() == pytest.approx(0.9)
            else:
                torch.testing.assert_close(W.T @ W, 0.81 * torch.eye(50).double())
        assert layer.U.std().item() * layer.U.shape[0] ** 0.5 == pytest.approx(1, rel=0.1)


def test_forget_gates_start_open():
    """Order i, f, g, o and r, z, n; no other unit's bias is moved, and no draw of the weights."""
    plain, open_ = (initial(make_config({"model.name": "lstm"} | v), 2) for v in ({}, {"init.forget_bias": 3.5}))
    gru = initial(make_config({"model.name": "gru", "init.forget_bias": 3.5}))
    assert gru.layers[0].b.count_nonzero() == 0
    for theta, bias in ((plain, 1.0), (open_, 3.5)):
        for layer in theta.layers:
            i, f, g, o = layer.b.chunk(4, -1)
            assert (f == bias).all()
            assert not torch.cat([i, g, o]).any()
    for a, b in zip(plain.layers, open_.layers, strict=True):
        assert torch.equal(a.W, b.W)
        assert torch.equal(a.U, b.U)


def test_chrono_biases():
    """b_f = log U[1, T_max - 1] and b_i = -b_f; for a GRU the gate that keeps, z. A unit and a layer have their own draw."""
    chrono, none = ({"model.name": "lstm", "init.chrono": v} for v in (100.0, None))
    theta, plain = initial(make_config(chrono), 2), initial(make_config(none), 2)
    forgets = []
    for layer, other in zip(theta.layers, plain.layers, strict=True):
        i, f, g, o = layer.b.chunk(4, -1)
        assert ((f >= 0) & (f <= np.log(99))).all()
        assert torch.equal(i, -f)
        assert not torch.cat([g, o]).any()
        assert torch.equal(layer.W, other.W)
        forgets += f.flatten().tolist()
    assert len(set(forgets)) == 100
    assert torch.equal(theta.V, plain.V)
    r, z, n = initial(make_config(chrono | {"model.name": "gru"})).layers[0].b.chunk(3, -1)
    assert z[0].tolist() == forgets[:50]
    assert not torch.cat([r, n]).any()


def test_scale_is_over_the_square_root_of_the_fan_in():
    """std: W scale/sqrt(hidden), U input_scale/sqrt(fan in), V output_scale/sqrt(hidden)."""
    theta = initial(
        make_config({"model.hidden": 300, "init.scale": 2.0, "init.input_scale": 3.0, "init.output_scale": 4.0}),
        layers=2,
    )
    root = 300**0.5
    for n, fan_in in ((0, 6**0.5), (1, root)):
        assert theta.layers[n].W.std().item() * root == pytest.approx(2, rel=0.02)
        assert theta.layers[n].U.std().item() * fan_in == pytest.approx(3, rel=0.1)
        assert theta.layers[n].b.count_nonzero() == 0
    assert theta.V.std().item() * root == pytest.approx(4, rel=0.1)
    assert theta.c.count_nonzero() == 0


@pytest.mark.parametrize(
    ("preset", "phi", "std", "W_std"),
    [
        ("pascanu_sigmoid", "sigmoid", 0.01, 0.01),
        ("pascanu_basic_tanh", "tanh", 0.1, 0.1),
        ("pascanu_smart_tanh", "tanh", 0.01, None),
    ],
)
def test_pascanus_presets(preset, phi, std, W_std):
    """P13: N(0, v), v the standard deviation, in U, V; the same in W, or 15 incoming links and rho .95; biases 0."""
    config = of_preset(preset)
    theta = initial(config)
    assert config.model.activation == phi
    for weights in (theta.layers[0].U, theta.V):
        assert weights.std().item() == pytest.approx(std, rel=5 / (2 * weights.numel()) ** 0.5)
    W = theta.layers[0].W
    if W_std is not None:
        assert W.std().item() == pytest.approx(W_std, rel=0.02)
    else:
        assert (W.count_nonzero(dim=0) == 15).all()
        assert np.abs(np.linalg.eigvals(W.numpy())).max() == pytest.approx(0.95)
    assert theta.layers[0].b.count_nonzero() == theta.c.count_nonzero() == 0


def test_stacked_parameters_are_those_of_each_run_alone():
    configs = [
        make_config({"seed": s, "init.name": n, "init.scale": g})
        for s, n, g in ((0, "gaussian", 1.5), (0, "sparse", 0.9), (4, "identity", 1.0))
    ]
    rngs = [vectorize.streams(c.seed)[0] for c in configs]
    stacked = vectorize.stack_parameters(configs, TemporalOrder(10), rngs, torch.float64, "cpu")
    for run, config in enumerate(configs):
        assert torch.equal(stacked.flat[run], initial(config).flat)


def batches(seeds: list[int], count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = vectorize.MiniBatches(TemporalOrder(10), [vectorize.streams(s)[1] for s in seeds], 4, torch.float32, "cpu")
    return [(x.clone(), y.clone()) for x, y in (source.draw() for _ in range(count))]


def test_mini_batches_do_not_depend_on_the_company():
    """Across several blocks: seed 3 alone, and between others."""
    for (x, y), (xs, ys) in zip(batches([3], 40), batches([1, 3, 2], 40), strict=True):
        assert torch.equal(xs[1], x[0])
        assert torch.equal(ys[1], y[0])
        assert not torch.equal(xs[0], xs[2])


def test_mini_batches_are_the_tasks_blocks_one_after_the_other():
    rng, task = vectorize.streams(3)[1], TemporalOrder(10)
    blocks = [task.sample(rng, vectorize.BLOCK, 4) for _ in range(3)]
    expected_x, expected_y = (np.concatenate([block[k] for block in blocks]) for k in (0, 1))
    drawn = batches([3], 3 * vectorize.BLOCK)
    np.testing.assert_array_equal(np.stack([x[0] for x, _ in drawn]), expected_x)
    np.testing.assert_array_equal(np.stack([y[0] for _, y in drawn]), expected_y)
    assert len(np.unique(expected_x, axis=0)) == len(expected_x)


def test_labels_stay_classes_and_hyperparameters_are_float64():
    x, y = batches([0], 1)[0]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    lr = vectorize.per_run([0.1, 1e-9], "cpu")
    assert lr.dtype == torch.float64
    assert lr.tolist() == [0.1, 1e-9]


def test_a_gpu_takes_programs_of_many_more_runs():
    sizes = [vectorize.best_size(make_config({"training.device": device})) for device in ("cpu", "cuda")]
    assert sizes[1] >= 16 * sizes[0]
