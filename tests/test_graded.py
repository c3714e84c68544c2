"""Products of many Jacobians against multi-precision arithmetic: every singular value, however small, to relative accuracy."""

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from rnn_lab import graded


def jacobians(runs: tuple[int, ...], steps: int, N: int, decades: float, seed: int = 0) -> list[Tensor]:
    """diag(phi') W^T, phi' between 10^-decades and 1."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((steps, *runs, N, N)) / N**0.5
    prime = 10 ** (-decades * rng.random((steps, *runs, N, 1)))
    return list(torch.from_numpy(prime * W))


def exact(matrices: list[Tensor], digits: int) -> np.ndarray:
    """log10 of the singular values of the product, last matrix on the left, in so many digits."""
    with mpmath.workdps(digits):
        product = mpmath.eye(matrices[0].shape[-1])
        for J in matrices:
            product = mpmath.matrix(J.tolist()) * product
        values = [float(mpmath.log10(s)) for s in mpmath.svd_r(product, compute_uv=False)]
    return np.sort(values)[::-1]


@pytest.mark.parametrize("decades", [0, 3, 20], ids="phi' down to 1e-{}".format)
def test_singular_values_of_products_are_those_of_multi_precision(decades):
    """The smallest go down to 1e-700, and all are right to 12 digits; a plain product in float64 has lost them after two steps."""
    J = jacobians((), 40, 6, decades)
    found = graded.log10_singular_values(J, [1, 2, 7, 40]).numpy()
    for values, lag in zip(found, (1, 2, 7, 40), strict=True):
        np.testing.assert_allclose(values, exact(J[:lag], 2500), atol=1e-12 * 40 * (1 + decades))
    assert found[-1, 0] - found[-1, -1] > 20


def test_they_explode_as_well_as_they_vanish():
    J = [1e30 * jacobian for jacobian in jacobians((), 20, 4, 40)]
    np.testing.assert_allclose(graded.log10_singular_values(J, [20])[0], exact(J, 2500), atol=1e-10)


def test_every_leading_shape(runs):
    J = jacobians(runs, 5, 7, 2)
    together = graded.log10_singular_values(J, [5])
    for run in np.ndindex(*runs):
        alone = graded.log10_singular_values([jacobian[run] for jacobian in J], [5])
        np.testing.assert_allclose(together[run], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("N", [1, 2, 3, 8])
def test_of_one_matrix_they_are_those_of_an_svd(N):
    [J] = jacobians((), 1, N, 0)
    torch.testing.assert_close(10 ** graded.log10_singular_values([J], [1])[0], torch.linalg.svdvals(J))


def test_orthogonal_matrices_have_ones_and_a_lost_direction_is_minus_infinity():
    Q = torch.linalg.qr(jacobians((), 1, 5, 0)[0])[0]
    torch.testing.assert_close(graded.log10_singular_values([Q] * 200, [200])[0], torch.zeros(5).double())
    off = torch.ones(5, 1).double()
    off[[1, 3]] = 0  # two units of a ReLU net are off, always the same
    values = graded.log10_singular_values([off * J for J in jacobians((), 30, 5, 1)], [30])[0]
    assert torch.isfinite(values[:3]).all()
    assert (values[3:] == -torch.inf).all()


def test_the_diagonal_of_R_is_not_them():
    """Over a short lag it is off by a factor of 3 here, up to a decade elsewhere (hence all this)."""
    J = jacobians((), 3, 6, 1)
    Q, diagonal = torch.eye(6).double(), 0
    for jacobian in J:
        Q, R = graded.qr(jacobian @ Q)
        diagonal = diagonal + R.diagonal().abs().log10()
    true = graded.log10_singular_values(J, [3])[0]
    assert (torch.as_tensor(diagonal).sort(descending=True).values - true).abs().max() > 0.4
    torch.testing.assert_close(torch.as_tensor(diagonal).sum(), true.sum())  # |det| is the product of either


def test_qr_is_accurate_in_small_rows():
    """R's smallest diagonal entries come from rows of 1e-30; without sorting they would be rounding errors of 1e-16."""
    [A] = jacobians((), 1, 6, 0)
    A = A * torch.tensor([1e-30, 1, 1e-12, 1e-22, 1, 1e-6]).double()[:, None]
    Q, R = graded.qr(A)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(6).double())
    torch.testing.assert_close((Q @ R) / A.abs().amax(-1, keepdim=True), A / A.abs().amax(-1, keepdim=True))
    with mpmath.workdps(80):
        _, expected = mpmath.qr(mpmath.matrix(A.tolist()))
        diagonal = [float(abs(expected[i, i])) for i in range(6)]
    torch.testing.assert_close(R.diagonal().abs(), torch.tensor(diagonal, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("lags", "message"), [([0], "at least 1"), ([3], "3 Jacobians")])
def test_lags_are_within_what_there_is(lags, message):
    with pytest.raises(ValueError, match=message):
        graded.log10_singular_values(jacobians((), 2, 3, 0), lags)
