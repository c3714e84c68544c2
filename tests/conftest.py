"""What all tests share."""

import pytest
import torch

torch.set_num_threads(1)  # as every CPU program does: with more, long sums are split differently


@pytest.fixture(params=[(), (3,), (2, 3)], ids=str)
def runs(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Leading run axes: a single run, a program, and a program of two axes."""
    return request.param
