"""What is measured, one quantity a file. Probes read what an update computed anyway and change nothing.

Costs are stated in updates' time at 50 units, batch 20 and T = 100, the update being the CPU kernel's in a program of 8 runs (.6 ms an
Elman run; the reference's is 2 to 3 times that). The probes that are not in the kernel are batched over runs: a run alone pays two to
four times as much for them.
"""

from rnn_lab.probes.adjoints import log10_norms
from rnn_lab.probes.contributions import contribution_scalars, contributions
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
    "contribution_scalars",
    "contributions",
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
