"""Initialisations: what each promises about its matrix."""

import numpy as np
import pytest

from rnn_lab import inits


def normals(hidden: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((hidden, hidden))


def rho(W: np.ndarray) -> float:
    return np.abs(np.linalg.eigvals(W)).max()


def test_gaussian_has_the_std_it_is_given():
    """Sample mean, std and kurtosis of 250,000 entries, each within 5 standard errors of N(0, .3^2)'s."""
    w = inits.gaussian(normals(500), 0.3).ravel() / 0.3
    n = w.size
    assert abs(w.mean()) < 5 / n**0.5
    assert abs(w.std() - 1) < 5 / (2 * n) ** 0.5
    assert abs((w**4).mean() - 3) < 5 * (96 / n) ** 0.5


def test_gaussian_of_std_g_over_sqrt_hidden_has_spectral_radius_near_g():
    """The circular law, which is what `scale` means for this init."""
    assert rho(inits.gaussian(normals(200), 1.5 / 200**0.5)) == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("hidden", [1, 2, 7, 50])
@pytest.mark.parametrize("gain", [0.0, 1.0, 1.5])
def test_orthogonal_preserves_every_length_up_to_its_gain(hidden, gain):
    W = inits.orthogonal(normals(hidden), gain)
    np.testing.assert_allclose(W.T @ W, gain**2 * np.eye(hidden), atol=1e-13)
    np.testing.assert_allclose(W @ W.T, gain**2 * np.eye(hidden), atol=1e-13)


def test_orthogonal_is_uniform_over_the_group():
    """Haar: E tr(Q) = 0, E tr(Q)^2 = 1, det = 1 half of the time. The Q of a plain QR is not (Mezzadri 2007)."""
    draws, hidden = 4000, 5
    Q = np.stack([inits.orthogonal(normals(hidden, seed), 1.0) for seed in range(draws)])
    traces = np.trace(Q, axis1=1, axis2=2)
    assert abs(traces.mean()) < 5 / draws**0.5
    assert (traces**2).mean() == pytest.approx(1, abs=5 * (2 / draws) ** 0.5)
    assert (np.linalg.det(Q) > 0).mean() == pytest.approx(0.5, abs=5 * 0.5 / draws**0.5)
    plain = np.stack([np.linalg.qr(normals(hidden, seed))[0] for seed in range(draws)])
    assert abs(np.trace(plain, axis1=1, axis2=2).mean()) > 1, "the sign correction would not be needed"


def test_identity_keeps_the_state():
    np.testing.assert_array_equal(inits.identity(3, 0.9), [[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9]])


@pytest.mark.parametrize("hidden", [1, 3, 15, 16, 50])
@pytest.mark.parametrize("target", [0.95, 1.2])
def test_sparse_has_its_links_coming_in_and_its_spectral_radius(hidden, target):
    """P13, "smart tanh": min(15, H) non-zero entries in every column of the (in, out) W; the number in a row varies."""
    W = inits.sparse(normals(hidden), 15, target, np.random.default_rng(1))
    assert (np.count_nonzero(W, axis=0) == min(15, hidden)).all()
    assert rho(W) == pytest.approx(target, rel=1e-9)
    if hidden == 50:
        assert len(set(np.count_nonzero(W, axis=1))) > 1


def test_sparse_links_are_uniform_and_their_values_normal():
    """Over many draws every entry is linked as often; rescaling apart, the values are those of z."""
    hidden, links, draws = 8, 3, 3000
    rng = np.random.default_rng(2)
    count = np.zeros((hidden, hidden))
    for seed in range(draws):
        z = normals(hidden, seed)
        W = inits.sparse(z, links, 0.95, rng)
        count += W != 0
        ratio = (W / z)[W != 0]
        np.testing.assert_allclose(ratio, ratio[0])
    p = links / hidden
    assert np.abs(count / draws - p).max() < 5 * (p * (1 - p) / draws) ** 0.5


def test_a_nilpotent_draw_is_drawn_again():
    """z = 0 on all but one triangle can only give rho = 0, which no factor rescales."""
    z = np.triu(normals(4), 1)
    W = inits.sparse(z, 2, 0.95, np.random.default_rng(0))
    assert rho(W) == pytest.approx(0.95)
    assert np.isfinite(W).all()


def test_chrono_biases_make_time_constants_uniform():
    """sigmoid(b) = f and 1 / (1 - f) = 1 + e^b: uniform over 2..T_max (Tallec & Ollivier 2018, section 3)."""
    b = inits.chrono(np.random.default_rng(0).random(20_000), 100.0)
    times = np.sort(1 + np.exp(b))
    assert 2 <= times[0] < 2.1
    assert 99.9 < times[-1] <= 100
    np.testing.assert_allclose(times, np.linspace(2, 100, len(times)), atol=98 * 1.6 / len(times) ** 0.5)  # Kolmogorov
    assert (inits.chrono(np.array([0.0, 0.5]), 2.0) == 0).all()
