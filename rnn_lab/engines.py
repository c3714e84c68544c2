"""What computes a program's gradients: the reference in PyTorch (any device, the one to read), or a fused kernel that tests hold to it.

An engine works on the mini-batch at hand of `batches`, at the parameters `theta`, which it reads anew each time.
"""

import importlib.util
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import bptt, kernels, probes, recurrence, regularizers
from rnn_lab.cells import Cell, Elman, Own
from rnn_lab.config import CORPUS_TASKS, Config, without_kernel
from rnn_lab.parameters import Parameters
from rnn_lab.vectorize import MiniBatches


class Engine(Protocol):
    """Objective, gradients and measurements of R runs."""

    grads: Parameters  # what the clip sees: of the objective and, where it is on, of alpha Omega
    alpha: Tensor | None  # (R,), of Omega; None: off. May be replaced between two calls
    carried: list[Tensor]  # the states that the next mini-batch begins with, (R, ...) each; none if it begins with 0

    def gradients(self, measure: bool) -> tuple[Tensor, Tensor]:
        """The objective (R,) and the outputs of the last L steps (R, L, batch, outputs); fills `grads`. measure: `measured` will follow."""
        ...

    def measured(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scalars (R,) and series through time (R, layers, T) of the last `gradients`; dearer where that was not told to measure."""
        ...

    def contributions(self, lag: int) -> tuple[dict[str, Tensor], Tensor]:
        """Scalars (R,) and norms over pairs (t, k), of the last `measured`. See `probes.contributions`."""
        ...


class Reference:
    """bptt on the program as a whole. alpha: (R,), of Omega; None: off.  truncation: K of truncated BPTT; None: full."""

    def __init__(
        self,
        theta: Parameters,
        net: bptt.Net,
        batches: MiniBatches,
        alpha: Tensor | None = None,
        truncation: int | None = None,
    ):
        self.grads, self._full = theta.like(), theta.like()  # full: dE/dtheta of full BPTT, where measured
        self._theta, self._net, self._batches, self.alpha, self._truncation = theta, net, batches, alpha, truncation
        T, batch, keep = batches.task.steps, batches.batch_size, alpha is not None
        self._buffers = bptt.Buffers(theta, net.cell, T, batch, keep_dE_dh=keep)
        self.carried = self._buffers.last_states if batches.task.carries_state else []
        self._adjoints: bptt.ScaledAdjoints | None = None
        self._omega: Tensor | None = None

    def gradients(self, measure: bool) -> tuple[Tensor, Tensor]:
        (self._x, self._y), self._buffers.late = self._batches.tensors(), self._batches.late
        if self.carried:
            self._buffers.carry()
        return self._compute(measure)

    def _compute(self, measure: bool) -> tuple[Tensor, Tensor]:
        """`gradients` of the mini-batch in x, y and late."""
        theta, net, buffers, grads = self._theta, self._net, self._buffers, self.grads
        o = bptt.forward(theta, self._x, net, buffers)
        loss, self._dE_do = bptt.objective(o, self._y, net, buffers.late)
        self._adjoints = self._backward_scaled() if measure else None
        if self._truncation is not None:
            bptt.truncated_backward(theta, self._x, self._dE_do, net, buffers, grads, self._truncation)
        elif measure:
            grads.flat.copy_(self._full.flat)
        else:
            bptt.backward(theta, self._x, self._dE_do, net, buffers, grads)
        if self.alpha is not None and isinstance(net.cell, Elman):
            self._omega = regularizers.add_omega_gradient_(theta, net.cell, buffers, self.alpha, grads)
        return loss, o

    def _backward_scaled(self) -> bptt.ScaledAdjoints:
        return bptt.scaled_backward(self._theta, self._x, self._dE_do, self._net, self._buffers, self._full)

    def measured(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        adjoints, buffers, net = self._adjoints or self._backward_scaled(), self._buffers, self._net
        timesteps, omega = self._through_time(adjoints)
        curve = timesteps["dE_dh/log10_norm"]
        if net.loss_steps > 1:  # the slope is that of E_T alone
            last = bptt.scaled_adjoints(self._theta, self._dE_do[..., -1:, :, :], net, buffers)
            curve = probes.log10_norms(last.dE_dh)
        scalars = {"dE_dh/slope": probes.slope(curve[..., -1, :])}
        if omega is not None:
            scalars["omega"] = omega
        if self._truncation is not None:
            scalars |= probes.truncation_scalars(self._full.flat, self.grads.flat)
        return scalars, timesteps

    def _through_time(self, adjoints: bptt.ScaledAdjoints) -> tuple[dict[str, Tensor], Tensor | None]:
        """The series, and Omega, which an update with the regulariser knows already."""
        net, omega = self._net, self._omega
        if omega is None and isinstance(net.cell, Elman):
            omega = regularizers.net_omega(self._theta, net.cell, adjoints)
        return probes.time_series(self._x, self._theta, net, self._buffers, adjoints), omega

    def contributions(self, lag: int) -> tuple[dict[str, Tensor], Tensor]:
        norms, total = probes.contributions(self._x, self._theta, self._dE_do, self._net, self._buffers)
        return probes.contribution_scalars(norms, total, self._full, lag), norms


class Captured(Reference):
    """The reference on a GPU: what an update launches, hundreds of short kernels, is recorded as a CUDA graph and launched as one.

    There is a graph for updates with a row and one for those without, and the same again where some run's sequences are shorter. Each is
    recorded at its second use; the first runs as it is, which compiles and loads what it needs. No user's own cell, which may do anything.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._graphs: dict[tuple[bool, bool], tuple[torch.cuda.CUDAGraph, dict[str, Any], Any] | None] = {}
        self._mini_batch: dict[str, Tensor] = {}  # at addresses that stay
        self._measured: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    def gradients(self, measure: bool) -> tuple[Tensor, Tensor]:
        for name, given in zip(("x", "y", "late"), (*self._batches.at_hand(), self._batches.late), strict=True):
            if given is not None:
                self._mini_batch.setdefault(name, given.clone()).copy_(given)
        self._y, self._buffers.late = (
            self._mini_batch["y"],
            None if self._batches.late is None else self._mini_batch["late"],
        )
        kind = measure, self._buffers.late is None
        if kind not in self._graphs:
            self._graphs[kind] = None
            return self._compute(measure)
        found = self._graphs[kind] = self._graphs[kind] or self._capture(measure)
        graph, left, returned = found
        graph.replay()
        vars(self).update(left)
        return returned

    def measured(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._measured or super().measured()

    def _through_time(self, adjoints: bptt.ScaledAdjoints) -> tuple[dict[str, Tensor], Tensor | None]:
        if self._net.loops is recurrence:
            return super()._through_time(adjoints)
        from rnn_lab.kernels import gpu_series

        if self._x.shape[-2] > gpu_series.CROWD:
            return super()._through_time(adjoints)
        return gpu_series.time_series(self._x, self._theta, self._net.cell, self._buffers, adjoints)

    def _compute(self, measure: bool) -> tuple[Tensor, Tensor]:
        self._x = self._batches.dense(self._mini_batch["x"])
        returned, self._measured = super()._compute(measure), None
        if measure:
            self._measured = super().measured()
        return returned

    def _capture(self, measure: bool) -> tuple[torch.cuda.CUDAGraph, dict[str, Any], Any]:
        """The graph, what `_compute` leaves behind, and what it returns: tensors that every launch fills anew."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads draw mini-batches meanwhile
            returned = self._compute(measure)
        return (
            graph,
            {name: vars(self)[name] for name in ("_x", "_dE_do", "_adjoints", "_omega", "_measured")},
            returned,
        )


class Fused:
    """The Numba kernel, a run at a time, runs over all cores. alpha: (R,), of Omega; None: off."""

    def __init__(self, theta: Parameters, net: bptt.Net, batches: MiniBatches, alpha: Tensor | None = None):
        from rnn_lab.kernels.engine import Program  # imports Numba, half a second

        carries = batches.task.carries_state
        self._program = Program(theta, net, batches.task.steps, batches.batch_size, carries=carries)
        self.grads, self._net, self._batches, self._measured = self._program.grads, net, batches, False
        self._theta, self.alpha, self.carried = theta, alpha, self._program.last_states

    def gradients(self, measure: bool) -> tuple[Tensor, Tensor]:
        if self.carried:
            self._program.carry()
        return self._computed(measure)

    def _computed(self, measure: bool) -> tuple[Tensor, Tensor]:
        batches, self._measured = self._batches, measure
        alpha = None if self.alpha is None else self.alpha.double().numpy()
        return self._program(batches.x, batches.y, batches.k, measure, *self._own_lengths(), alpha)

    def _own_lengths(self) -> tuple[NDArray | None, NDArray | None]:
        """The steps that each run sits out, and its weight of one E_t."""
        late = self._batches.late
        if late is None:
            return None, None
        weight = np.asarray(self._net.weight(self._batches.batch_size, late), np.float64)
        return late.numpy(), np.broadcast_to(weight, len(late)).copy()

    def measured(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if not self._measured:
            self._computed(measure=True)  # changes nothing but what is measured
        scalars = {"dE_dh/slope": torch.from_numpy(probes.slope(self._program.curve()))}
        omega = self._program.omega()
        return scalars | ({} if omega is None else {"omega": omega}), self._program.timesteps()

    def contributions(self, lag: int) -> tuple[dict[str, Tensor], Tensor]:
        reference = Reference(self._theta, self._net, self._batches)  # costs little beside what it is to do
        for own, states in zip(reference.carried, self._program.first_states, strict=True):
            own.copy_(states)
        reference.gradients(measure=True)
        return reference.contributions(lag)


def engine_for(config: Config, theta: Parameters, net: bptt.Net, batches: MiniBatches, alpha: Tensor | None) -> Engine:
    """The engine that training.kernel names; for auto the kernel, where there is one, and on a GPU what is launched at once."""
    kernel, lacking = config.training.kernel, without_kernel(config)
    if kernel == "auto" and theta.flat.is_cuda and not isinstance(net.cell, Own) and not batches.task.carries_state:
        return Captured(theta, net, batches, alpha, config.training.truncation)
    if kernel == "reference" or lacking is not None:
        if kernel == "auto":
            _say_once(f"training.kernel=auto: there is no kernel for {lacking}; the reference trains it")
        return Reference(theta, net, batches, alpha, config.training.truncation)
    return Fused(theta, net, batches, alpha)


def loops_for(config: Config, cell: Cell, inputs: int) -> bptt.Loops:
    """The loops through time that suit a program best: fused ones on a GPU, where there are any."""
    training = config.training
    plain = training.kernel == "reference" or config.task.name in CORPUS_TASKS  # whose states begin where others ended
    if training.device == "cpu" or plain or importlib.util.find_spec("triton") is None:
        return recurrence
    from rnn_lab.kernels import gpu  # imports Triton

    return gpu if gpu.suits(cell, inputs, config.model.hidden, training.dtype) else recurrence


@cache
def _say_once(line: str) -> None:
    kernels.say(line)
