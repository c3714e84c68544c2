"""What is measured, one quantity a file. Probes read what an update computed anyway and change nothing."""

from rnn_lab.probes.adjoints import log10_norms
from rnn_lab.probes.gradient import gradient_scalars, truncation_scalars
from rnn_lab.probes.lyapunov import lyapunov_scalars
from rnn_lab.probes.memory import memory
from rnn_lab.probes.series import series_names, time_series
from rnn_lab.probes.slope import slope
from rnn_lab.probes.smoothness import smoothness
from rnn_lab.probes.spectrum import rho, sigma_max, spectrum
from rnn_lab.probes.states import gate_saturation, h_norm, phi_prime_mean
from rnn_lab.probes.summands import log10_summand_norms, summand_series

__all__ = [
    "gate_saturation",
    "gradient_scalars",
    "h_norm",
    "log10_norms",
    "log10_summand_norms",
    "lyapunov_scalars",
    "memory",
    "phi_prime_mean",
    "rho",
    "series_names",
    "sigma_max",
    "slope",
    "smoothness",
    "spectrum",
    "summand_series",
    "time_series",
    "truncation_scalars",
]
