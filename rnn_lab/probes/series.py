"""All that is measured at every time step, by name: which series a cell has, and their values."""

from torch import Tensor

from rnn_lab.bptt import Buffers, Net, ScaledAdjoints
from rnn_lab.cells import LSTM, Cell, Elman
from rnn_lab.parameters import Parameters
from rnn_lab.probes.adjoints import log10_norms
from rnn_lab.probes.states import gate_saturation, h_norm, phi_prime_mean
from rnn_lab.probes.summands import summand_series


def series_names(kind: type[Cell]) -> tuple[str, ...]:
    """The names of a cell's series: those of every cell, and those that mean something for this one."""
    own = ("phi_prime/mean",) if issubclass(kind, Elman) else ()
    own += ("dE_dc/log10_norm",) if issubclass(kind, LSTM) else ()
    own += ("gates/saturation",) if kind.sigmoids else ()
    return ("dE_dh/log10_norm", "delta/log10_norm", "h/norm", *own, "dW/log10_norm", "dU/log10_norm")


def time_series(
    x: Tensor, theta: Parameters, net: Net, buffers: Buffers, adjoints: ScaledAdjoints
) -> dict[str, Tensor]:
    """The values of `series_names`, (*runs, layers, T) each, of the last forward and scaled backward pass."""
    cell, gates = net.cell, [trace.gates for trace in buffers.traces]
    series = {
        "dE_dh/log10_norm": log10_norms(adjoints.dE_dh),
        "delta/log10_norm": log10_norms(adjoints.delta),
        "h/norm": h_norm(buffers.h),
        **summand_series(x, theta, cell, buffers, adjoints),
    }
    if isinstance(cell, Elman):
        series["phi_prime/mean"] = phi_prime_mean(gates, cell.phi)
    if isinstance(cell, LSTM):
        series["dE_dc/log10_norm"] = log10_norms(adjoints.block(1))
    if cell.sigmoids:
        series["gates/saturation"] = gate_saturation(gates, cell.gates, cell.sigmoids)
    return series
