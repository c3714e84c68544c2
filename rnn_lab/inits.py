"""Initialisations of the recurrent matrix, from unit normals z ~ N(0, 1) of shape (hidden, hidden), so that a seed means one draw.

W is (in, out): row j holds unit j's outgoing links, column i unit i's incoming ones. All in float64 NumPy; callers cast.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def gaussian(z: Matrix, std: float) -> Matrix:
    """W_ij ~ N(0, std^2)."""
    return std * z


def orthogonal(z: Matrix, gain: float) -> Matrix:
    """W^T W = gain^2 I, uniform over the orthogonal group: Q of z = QR with R's diagonal made positive (Mezzadri 2007)."""
    Q, R = np.linalg.qr(z)
    return gain * Q * np.where(np.diag(R) < 0, -1.0, 1.0)


def identity(hidden: int, gain: float) -> Matrix:
    """W = gain I; with ReLU the IRNN (Le, Jaitly & Hinton 2015).

    >>> identity(2, 0.5)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    return gain * np.eye(hidden)


def sparse(z: Matrix, links: int, rho: float, rng: np.random.Generator) -> Matrix:
    """min(links, hidden) incoming links a unit, drawn normal, rescaled to spectral radius rho (P13, "smart tanh").

    The links come from `rng`; a draw whose spectral radius is 0 is drawn again, values and links.
    """
    hidden = len(z)
    links = min(links, hidden)
    while True:
        incoming = np.argsort(rng.random((hidden, hidden)), axis=0) < links  # `links` True in each column
        W = np.where(incoming, z, 0.0)
        radius = np.abs(np.linalg.eigvals(W)).max()
        if radius > 1e-12 * np.abs(W).max(initial=0.0):
            return W * (rho / radius)
        z = rng.standard_normal(z.shape)


def chrono(u: NDArray[np.float64], longest: float) -> NDArray[np.float64]:
    """The bias of gates that keep, log U[1, T_max - 1] with T_max = `longest` >= 2, from u uniform in [0, 1) (Tallec & Ollivier 2018).

    A gate at its bias forgets 1/(1 + e^b) of the state a step: time constants are uniform over 2..T_max. Its input gate has the negative.
    """
    return np.log(1 + (longest - 2) * u)
