"""What is measured, one quantity a file. Probes read what an update computed anyway and change nothing."""

from rnn_lab.probes.adjoints import log10_norms
from rnn_lab.probes.gradient import gradient_scalars
from rnn_lab.probes.slope import slope
from rnn_lab.probes.spectrum import rho, sigma_max, spectrum
from rnn_lab.probes.states import h_norm, phi_prime_mean

__all__ = ["gradient_scalars", "h_norm", "log10_norms", "phi_prime_mean", "rho", "sigma_max", "slope", "spectrum"]
