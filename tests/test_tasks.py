"""Tasks against their recipes, re-read from the sampled sequences, and their trivial baselines by simulation."""

import math

import numpy as np
import pytest
import torch

from rnn_lab.losses import softmax_cross_entropy
from rnn_lab.tasks import TASKS, TemporalOrder

A, B = 4, 5
LENGTHS = [10, 11, 19, 20, 57, 100]


def sample(L: int, sequences: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (sequences, L) and classes (sequences,), from x checked to be one-hot."""
    x, y = TemporalOrder(L).sample(np.random.default_rng(seed), 8, sequences // 8)
    assert x.shape == (8, L, sequences // 8, 6)
    assert y.shape == (8, 1, sequences // 8)
    assert set(np.unique(x)) == {0, 1}
    assert (x.sum(-1) == 1).all()
    return x.argmax(-1).swapaxes(1, 2).reshape(-1, L), y.reshape(-1)


def chi_square(observed: np.ndarray) -> float:
    """Against a uniform distribution, in standard deviations above its mean."""
    n, k = observed.sum(), observed.size
    return (((observed - n / k) ** 2 / (n / k)).sum() - (k - 1)) / math.sqrt(2 * (k - 1))


@pytest.mark.parametrize("L", LENGTHS)
def test_temporal_order_follows_the_recipe(L):
    """One A/B in [w, 2w), one in [5L//10, 5L//10 + w), w = L//10; every other step a distractor; class v0 + 2 v1."""
    symbols, y = sample(L)
    w = L // 10
    for sequence, label in zip(symbols.tolist(), y.tolist(), strict=True):
        places = [t for t, symbol in enumerate(sequence) if symbol in (A, B)]
        assert len(places) == 2
        first, second = places
        assert w <= first < 2 * w
        assert 5 * L // 10 <= second < 5 * L // 10 + w
        assert label == {(A, A): 0, (B, A): 1, (A, B): 2, (B, B): 3}[sequence[first], sequence[second]]


@pytest.mark.parametrize("L", LENGTHS)
def test_temporal_order_is_uniform_where_the_recipe_is(L):
    """Distractors, both positions (all of them occur), and classes: chi-square within 5 standard deviations."""
    symbols, y = sample(L)
    w, marked = L // 10, symbols >= A
    assert chi_square(np.bincount(symbols[~marked], minlength=4)) < 5
    assert chi_square(np.bincount(y, minlength=4)) < 5
    if w > 1:
        first = np.bincount(marked.argmax(1) - w, minlength=w)
        second = np.bincount(L - 1 - marked[:, ::-1].argmax(1) - 5 * L // 10, minlength=w)
        assert len(first) == len(second) == w
        assert chi_square(first) < 5
        assert chi_square(second) < 5
        assert abs(np.corrcoef(marked.argmax(1), marked[:, ::-1].argmax(1))[0, 1]) < 5 / len(y) ** 0.5


def test_distractors_do_not_depend_on_their_neighbours_or_their_place():
    symbols, _ = sample(20, 16000)
    pairs = symbols[:, 14] * 4 + symbols[:, 15]  # beyond every A/B
    assert chi_square(np.bincount(pairs, minlength=16)) < 5


def test_the_worked_example_of_the_docstring():
    """c A d d f B c e c d is AB, class 2; and the sampler can produce it."""
    word = "cAddfBcecd"
    assert " ".join(word) in str(TemporalOrder.__doc__)
    assert "AB, class 2" in str(TemporalOrder.__doc__)
    symbols, y = sample(10)
    marks = [symbols[:, t] for t in (1, 5)]
    assert (y[(marks[0] == A) & (marks[1] == B)] == 2).all()
    assert [t for t, letter in enumerate(word) if letter in "AB"] == [1, 5]


def test_the_shortest_length_is_where_the_windows_are_not_empty():
    shortest = TemporalOrder.shortest
    assert shortest == 10
    sample(shortest, 80)
    with pytest.raises(ValueError, match="high"):
        sample(shortest - 1, 80)


def test_the_trivial_baseline_is_the_best_constant():
    """By simulation of 80,000 labels: the best constant is their frequencies; their largest errs least."""
    _, y = sample(10, 80000)
    frequencies = np.bincount(y, minlength=4) / len(y)
    baseline = TemporalOrder.baseline
    assert -(frequencies * np.log(frequencies)).sum() == pytest.approx(baseline.loss, abs=1e-3)
    assert 1 - frequencies.max() == pytest.approx(baseline.error, abs=0.01)
    constant = torch.zeros(len(y), 4)
    assert softmax_cross_entropy(constant, torch.from_numpy(y))[0].mean().item() == pytest.approx(
        baseline.loss, rel=1e-5
    )


def test_an_example_is_wrong_if_its_largest_output_is_another_class(runs):
    o = torch.zeros(*runs, 1, 4, 4)
    o[..., 0, :, :] = torch.tensor([[5.0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 5], [0, 1, 2, 1]])
    y = torch.tensor([0, 0, 3, 2]).expand(*runs, 1, 4)
    assert TemporalOrder(10).wrong(o, y).tolist() == torch.tensor([False, True, False, False]).expand(*runs, 4).tolist()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_is(name):
    task = TASKS[name](100)
    x, y = task.sample(np.random.default_rng(0), 2, 3)
    assert x.shape == (2, task.steps, 3, task.inputs)
    assert y.shape[:3] == (2, task.loss_steps, 3)
    E, _ = task.loss(torch.zeros(2, task.loss_steps, 3, task.outputs), torch.from_numpy(y))
    assert torch.isfinite(E).all()
    assert "aseline" in str(type(task).__doc__), "the docstring derives the trivial baseline"
