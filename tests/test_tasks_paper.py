"""The paper's other tasks and the copying problem: against their recipes, re-read from the samples, and their baselines by simulation."""

import math

import numpy as np
import pytest
import torch
from oracle import make_config

from rnn_lab.config import RECALL_TASKS, TASK_NAMES, problems
from rnn_lab.tasks import (
    OF_CORPORA,
    TASKS,
    Addition,
    Copying,
    Memorization,
    Multiplication,
    RandomPermutation,
    TemporalOrder3Bit,
)
from rnn_lab.vectorize import make_task

A, B = 4, 5
LENGTHS = [10, 11, 19, 20, 57, 100]
BATCHES = 40


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def symbols(x: np.ndarray) -> np.ndarray:
    """One-hot (batches, T, batch, n) -> (batches, batch, T), checked to be one-hot."""
    assert set(np.unique(x)) <= {0, 1}
    assert (x.sum(-1) == 1).all()
    return x.argmax(-1).swapaxes(1, 2)


def chi_square(observed: np.ndarray) -> float:
    """Against a uniform distribution, in standard deviations above its mean."""
    n, k = observed.sum(), observed.size
    return (((observed - n / k) ** 2 / (n / k)).sum() - (k - 1)) / math.sqrt(2 * (k - 1))


def assert_uniform(values: np.ndarray, number: int) -> None:
    """All of 0..number-1 and nothing else, equally often."""
    counts = np.bincount(values.ravel(), minlength=number)
    assert len(counts) == number
    assert number == 1 or chi_square(counts) < 5


@pytest.mark.parametrize("L", LENGTHS)
def test_temporal_order_3bit(L):
    x, y = TemporalOrder3Bit(L).sample(rng(), BATCHES, 100)
    s, w = symbols(x).reshape(-1, L), L // 10
    assert s.max() < 6
    places = np.nonzero(s >= A)[1].reshape(-1, 3)  # exactly three in each, or this fails
    for k, start in enumerate((w, 3 * L // 10, 6 * L // 10)):
        assert_uniform(places[:, k] - start, w)
    bits = np.take_along_axis(s, places, 1) - A
    np.testing.assert_array_equal(y.ravel(), bits @ [1, 2, 4])
    assert_uniform(y, 8)
    assert_uniform(s[s < A], 4)


@pytest.mark.parametrize("task", [Addition, Multiplication])
@pytest.mark.parametrize("L", LENGTHS)
def test_addition_and_multiplication(task, L):
    problem, draws = task(L), rng()
    lengths = problem.lengths(draws, BATCHES)
    x, y = problem.sample(draws, BATCHES, 100, lengths)
    T = problem.steps
    assert T == L + L // 10 - 1
    assert x.shape == (BATCHES, T, 100, 2)
    assert y.shape == (BATCHES, 1, 100, 1)
    for sequences, targets, length in zip(x, y, lengths, strict=True):
        values, marks = sequences[T - length :].transpose(2, 1, 0)  # (batch, l) each, the program's last l steps
        assert set(np.unique(marks)) == {0, 1}
        places = np.nonzero(marks)[1].reshape(-1, 2)
        assert (places[:, 0] < length // 10).all()
        assert (length // 10 <= places[:, 1]).all()
        assert (places[:, 1] < length // 10 + 4 * length // 10).all()
        a, b = np.take_along_axis(values, places, 1).T
        np.testing.assert_allclose(targets[0, :, 0], (a + b) / 2 if task is Addition else a * b, rtol=1e-6)
        assert sequences[: T - length, :, 1].sum() == 0


def test_the_places_and_values_of_addition_are_uniform():
    x, _ = Addition(20).sample(rng(), 200, 100, np.full(200, 20))
    values, marks = x[:, 1:, ..., 0], x[:, 1:, ..., 1].swapaxes(1, 2)
    places = np.nonzero(marks)[2].reshape(-1, 2)
    assert_uniform(places[:, 0], 2)
    assert_uniform(places[:, 1] - 2, 8)
    assert_uniform((values * 10).astype(int), 10)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.05


@pytest.mark.parametrize("L", [10, 20, 57])
def test_true_lengths_are_uniform_on_L_to_L_plus_w(L):
    lengths = Addition(L).lengths(rng(), 4000)
    assert_uniform(lengths - L, L // 10)


@pytest.mark.parametrize("L", [1, 2, 20])
def test_random_permutation(L):
    x, y = RandomPermutation(L).sample(rng(), BATCHES, 100)
    s = symbols(x).reshape(-1, L)
    np.testing.assert_array_equal(s[:, 0], y.ravel())
    assert_uniform(y, 2)
    if L > 1:
        assert s[:, 1:].min() >= 2
        assert_uniform(s[:, 1:] - 2, 98)


@pytest.mark.parametrize("T", [1, 2, 30])
@pytest.mark.parametrize("sizes", [(5, 2), (10, 5), (1, 3)], ids=str)
@pytest.mark.parametrize("task", [Memorization, Copying])
def test_memorization_and_copying(task, sizes, T):
    """Steps, 0-based: values 0..p-1, cue at T + p (memorization) or delimiter at T + p - 1 (copying), recall from T + p."""
    p, values = sizes
    x, y = task(T, positions=p, values=values).sample(rng(), BATCHES, 100)
    s, targets, blank = symbols(x), y.swapaxes(1, 2), values
    assert s.shape == targets.shape == (BATCHES, 100, T + 2 * p)
    assert x.shape[-1] == values + 2
    pattern, cue = s[..., :p], T + p if task is Memorization else T + p - 1
    assert pattern.max() < values
    np.testing.assert_array_equal(targets[..., T + p :], pattern)
    assert (targets[..., : T + p] == blank).all()
    rest = np.delete(s, [*range(p), cue], axis=-1)
    assert (rest == blank).all()
    assert (s[..., cue] == values + 1).all()
    if (p, values) == (10, 5):
        assert_uniform(pattern, values)


@pytest.mark.parametrize("batch_size", [32, 64, 100])
def test_a_batch_of_five_bits_is_all_patterns(batch_size):
    """Each of the 32 as often as it fits; what is left over is drawn, uniformly."""
    pattern = Memorization(10).patterns(rng(), 500, batch_size)
    numbers = np.einsum("npb,p->nb", pattern, [16, 8, 4, 2, 1])
    whole = batch_size // 32
    for batch in numbers:
        counts = np.bincount(batch, minlength=32)
        assert counts.min() == whole if batch_size % 32 == 0 else counts.min() >= whole
        assert counts.sum() == batch_size
    if batch_size % 32:
        assert_uniform(numbers[:, whole * 32 :], 32)


def word(text: str, letters: str) -> list[int]:
    return [letters.index(c) for c in text.split("  ->")[0].split()]


def test_worked_examples():
    """The examples of the docstrings are what the samplers produce."""
    doc = str(TemporalOrder3Bit.__doc__)
    assert "c B d A f c B e c d  ->  BAB, class 1 + 4 = 5" in doc
    s = word("c B d A f c B e c d", "cdefAB")
    assert [t for t, k in enumerate(s) if k >= A] == [1, 3, 6]
    x, y = TemporalOrder3Bit(10).sample(rng(), 1, 1000)
    assert (y.ravel()[(symbols(x)[0][:, [1, 3, 6]] == [B, A, B]).all(1)] == 5).all()

    assert "1 17 80 2 56 1" in str(RandomPermutation.__doc__)
    assert "(.8 + .4)/2 = .6" in str(Addition.__doc__)
    assert ".8 * .4 = .32" in str(Multiplication.__doc__)
    for task, cue in ((Memorization, "0 1 1 - - - - ! - -"), (Copying, "0 1 1 - - - ! - - -")):
        doc = str(task.__doc__)
        assert f"input   {cue}\n" in doc
        assert "target  - - - - - - - 0 1 1" in doc
        x, y = task(4, positions=3, values=2).sample(rng(), 1, 8)  # all eight patterns, in order
        assert symbols(x)[0, 3].tolist() == word(cue, "01-!")
        assert y[0, :, 3].tolist() == word("- - - - - - - 0 1 1", "01-")


# ------------------------------------------------------------------------------------------------------ trivial baselines


def targets(name: str, number: int = 200_000, **options: int) -> np.ndarray:
    """Targets (sequences, loss_steps) of many fresh sequences."""
    task = TASKS[name](10, **options)
    draws = rng(1)
    y = np.concatenate([task.sample(draws, 1, 1000)[1].reshape(task.loss_steps, -1).T for _ in range(number // 1000)])
    return y


@pytest.mark.parametrize("name", ["temporal_order", "temporal_order_3bit", "random_permutation"])
def test_baselines_of_a_class_at_the_last_step(name):
    y, baseline = targets(name, 20_000).ravel(), TASKS[name](10).baseline
    f = np.bincount(y) / len(y)
    assert -(f * np.log(f)).sum() == pytest.approx(baseline.loss, abs=1e-3)
    assert 1 - f.max() == pytest.approx(baseline.error, abs=0.01)
    assert baseline.smallest_error == baseline.error


@pytest.mark.parametrize("name", ["addition", "multiplication"])
def test_baselines_of_the_regression_tasks(name):
    """The mean is the loss-optimal constant; no constant on a grid errs less than smallest_error, and one reaches it."""
    y, task = targets(name).ravel(), TASKS[name](10)
    constants = np.linspace(0, 1, 101)
    losses = [((y - c) ** 2).mean() for c in constants]
    errors = [((y - c) ** 2 > 0.04).mean() for c in constants]
    best = int(np.argmin(losses))
    assert constants[best] == pytest.approx(0.5 if name == "addition" else 0.25, abs=0.011)
    assert losses[best] == pytest.approx(task.baseline.loss, rel=0.01)
    assert errors[best] == pytest.approx(task.baseline.error, abs=0.004)
    assert min(errors) == pytest.approx(task.baseline.smallest_error, abs=0.004)
    assert (task.baseline.smallest_error < task.baseline.error) == (name == "multiplication")


@pytest.mark.parametrize(
    ("name", "positions", "values"), [("memorization", 5, 2), ("copying", 3, 4), ("memorization", 2, 5)]
)
def test_baselines_of_recall(name, positions, values):
    """The same outputs for every pattern, each step's own: the entropy of each step's target, averaged; the commonest pattern's miss."""
    y = targets(name, 50_000, positions=positions, values=values)
    baseline = TASKS[name](10, positions=positions, values=values).baseline
    frequencies = [np.bincount(step) / len(step) for step in y.T]
    entropies = [-(f[f > 0] * np.log(f[f > 0])).sum() for f in frequencies]
    assert np.mean(entropies) == pytest.approx(baseline.loss, rel=1e-3)
    _, counts = np.unique(y, axis=0, return_counts=True)
    assert 1 - counts.max() / len(y) == pytest.approx(baseline.error, abs=0.005)
    assert baseline.smallest_error == baseline.error


def test_the_baseline_of_copying_is_the_papers():
    assert Copying(100).baseline.loss == pytest.approx(10 * math.log(8) / 120)
    assert Copying(100).baseline_of("sum").loss == pytest.approx(10 * math.log(8))
    assert Copying(100).baseline_of("mean") == Copying(100).baseline
    spread = Copying(5, 6).baseline.loss  # a length range: the mean over its lengths
    assert spread == pytest.approx((10 * math.log(8) / 25 + 10 * math.log(8) / 26) / 2)


# ------------------------------------------------------------------------------------------------- wrong, sizes, lengths


def test_an_example_is_wrong_if_any_of_its_steps_is(runs):
    task = Memorization(1, positions=1, values=2)  # three steps
    y = torch.tensor([[2, 2], [2, 2], [0, 1]]).expand(*runs, 3, 2)
    o = torch.nn.functional.one_hot(y, 3).double()
    assert not task.wrong(o, y).any()
    for step in range(3):
        off = o.clone()
        off[..., step, 0, :] = off[..., step, 0, :].roll(1, -1)
        assert (task.wrong(off, y) == torch.tensor([True, False])).all()
        assert task.wrong(off, y).shape == (*runs, 2)


def test_a_number_is_wrong_if_its_squared_error_is_over_04(runs):
    o = torch.tensor([0.5, 0.699, 0.701, 0.299, math.nan, math.inf]).view(1, 6, 1).expand(*runs, 1, 6, 1)
    y = torch.full((*runs, 1, 6, 1), 0.5)
    expected = torch.tensor([False, False, True, True, True, True]).expand(*runs, 6)
    assert (Addition(10).wrong(o, y) == expected).all()


@pytest.mark.parametrize("name", TASKS)
def test_lengths_too_short_are_refused_in_one_line(name):
    shortest = TASKS[name].shortest
    assert problems(make_config({"task.name": name, "task.length": shortest})) == []
    make_task(make_config({"task.name": name, "task.length": shortest}).task).sample(rng(), 2, 3)
    assert len(problems(make_config({"task.name": name, "task.length": shortest - 1}))) == 1
    if shortest > 1:
        for key, value in (("task.length_range", [shortest - 1, 50]), ("eval.lengths", [50, shortest - 1])):
            [line] = problems(make_config({"task.name": name, key: value}))
            assert line.startswith(f"{key}=[{value[0]},{value[1]}]: {name} needs at least {shortest}")


def test_the_config_knows_every_task():
    assert set(TASK_NAMES) == {*TASKS, *OF_CORPORA}
    assert set(RECALL_TASKS) == {name for name, task in TASKS.items() if task.options}


@pytest.mark.parametrize("name", TASKS)
def test_sizes_and_a_length_range(name):
    """Shapes, and with a range true lengths of every L in it, at every one of which the recipe holds at the end of the program's steps."""
    task = TASKS[name](10, 14)
    draws = rng()
    lengths = task.lengths(draws, 300)
    x, y = task.sample(draws, 300, 3, lengths)
    assert x.shape == (300, task.steps, 3, task.inputs)
    assert y.shape[:3] == (300, task.loss_steps, 3)
    extra = task.steps - 14
    assert_uniform(lengths - extra - 10, 5)
    for k, length in enumerate(lengths):
        own = slice(task.steps - length, None)
        if name.startswith("temporal_order"):
            s = symbols(x[k : k + 1, own])[0]
            assert (s >= A).sum() == (s[:, 1 : length - 1] >= A).sum() == 3 * (3 if "3bit" in name else 2)
            assert (s[:, 1] >= A).all()
        elif name == "random_permutation":
            assert (symbols(x[k : k + 1, own])[0][:, 0] == y[k, 0]).all()
        elif task.options:
            s = symbols(x[k : k + 1, own])[0]
            np.testing.assert_array_equal(s[:, : task.positions], y[k, -task.positions :].T)


def test_a_fixed_length_draws_what_it_always_drew():
    """`lengths` leaves the stream alone where there is nothing to draw."""
    a, b = rng(), rng()
    for name in TASKS:
        if name not in ("addition", "multiplication"):
            assert TASKS[name](20).lengths(a, 16) is None
    assert a.random() == b.random()
