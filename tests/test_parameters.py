"""One vector, many views."""

import pytest
import torch

from rnn_lab.parameters import Parameters

INPUTS, HIDDEN, OUTPUTS = 6, 7, 4


@pytest.mark.parametrize("layers", [1, 3])
def test_shapes(runs, layers):
    """Weights (*runs, in, out), biases (*runs, 1, out); layers above the first read the states below them."""
    theta = Parameters.zeros(runs, INPUTS, HIDDEN, OUTPUTS, layers)
    assert len(theta.layers) == layers
    for n, layer in enumerate(theta.layers):
        assert layer.U.shape == (*runs, INPUTS if n == 0 else HIDDEN, HIDDEN)
        assert layer.W.shape == (*runs, HIDDEN, HIDDEN)
        assert layer.b.shape == (*runs, 1, HIDDEN)
    assert theta.V.shape == (*runs, HIDDEN, OUTPUTS)
    assert theta.c.shape == (*runs, 1, OUTPUTS)
    assert theta.flat.shape[:-1] == runs
    assert theta.flat.count_nonzero() == 0


def test_views_and_vector_are_the_same_memory_and_views_do_not_overlap(runs):
    theta = Parameters.zeros(runs, INPUTS, HIDDEN, OUTPUTS, 2)
    views = [*theta.layers[0], *theta.layers[1], theta.V, theta.c]
    for number, view in enumerate(views, 1):
        view.fill_(number)
    for number, view in enumerate(views, 1):
        assert (view == number).all()
        assert (theta.flat == number).sum() == view.numel()
    theta.flat.zero_()
    assert all(view.count_nonzero() == 0 for view in views)


def test_every_slot_starts_at_64_bytes_in_every_run(runs):
    """A product's rounding may depend on its operands' alignment; a run's result must not depend on its place."""
    for dtype in (torch.float32, torch.float64):
        theta = Parameters.zeros(runs, INPUTS, HIDDEN, OUTPUTS, 2, dtype)
        for view in (*theta.layers[0], *theta.layers[1], theta.V, theta.c):
            assert view.storage_offset() % 16 == 0
            assert all(stride % 16 == 0 for stride in view.stride()[: len(runs)])


def test_like_has_the_same_shapes_and_none_of_the_numbers(runs):
    theta = Parameters.zeros(runs, INPUTS, HIDDEN, OUTPUTS, 2, torch.float64)
    theta.flat.fill_(1)
    twin = theta.like()
    assert twin.flat.shape == theta.flat.shape
    assert twin.flat.dtype == torch.float64
    assert twin.flat.count_nonzero() == 0
    pairs = zip((*theta.layers[1], theta.V, theta.c), (*twin.layers[1], twin.V, twin.c), strict=True)
    assert all(a.shape == b.shape and a.storage_offset() == b.storage_offset() for a, b in pairs)
