"""The kernels as the training loop calls them: PyTorch's tensors outside, NumPy's views of the same memory inside."""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numba.core.event import Event, Listener, register
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import kernels, losses
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.bptt import Net
from rnn_lab.cells import CELLS, Elman
from rnn_lab.kernels import cells
from rnn_lab.kernels.functions import PHI
from rnn_lab.kernels.heads import CLASSES, KEYS, NUMBERS
from rnn_lab.kernels.memory import Memory, new_memory, shape_of
from rnn_lab.kernels.program import Carried, Data, PerRun, Results, program
from rnn_lab.kernels.series import SERIES
from rnn_lab.parameters import Parameters

_UNGATED = (
    *("dE_dh/log10_norm", "delta/log10_norm", "h/norm", "phi_prime/mean"),
    *("dW/log10_norm", "dU/log10_norm"),
)
_GATED = tuple("gates/saturation" if name == "phi_prime/mean" else name for name in _UNGATED)
NAMES = {"elman": _UNGATED, "leaky": _UNGATED, "lstm": (*_GATED, "dE_dc/log10_norm"), "gru": _GATED}

LOSSES = {
    losses.softmax_cross_entropy: CLASSES,
    losses.squared_error: NUMBERS,
    losses.bernoulli_cross_entropy: KEYS,
}


class _Compiling(Listener):
    """Hears of what Numba compiles; loading from the cache is not among it."""

    def on_start(self, event: Event) -> None:
        if (event.data or {}).get("dispatcher") is program:
            kernels.say("compiling the kernel, once for this machine and dtype: about 20 s")

    def on_end(self, event: Event) -> None:
        pass


register("numba:compile", _Compiling())


class Program:
    """Objective, gradients and series of a program of R runs, (R, ...), on the CPU. `grads` is filled anew by every call.

    net.cell: one of cells.CELLS; a user's own has no kernel.
    threads: None is one a core (NUMBA_NUM_THREADS says otherwise). They are Python's, outside the interpreter for as long as they compute:
    nothing spins while the loop does other things, a thread that is held up holds up no other, and a process that forks later is safe, as
    under OpenMP it is not.
    Memory: memory.new_memory for each thread, however many runs.
    carries: mini-batches begin with `first_states`, not with 0, and leave `last_states`: of each layer h, then an LSTM's c,
    (R, batch, hidden).
    """

    def __init__(
        self, theta: Parameters, net: Net, T: int, batch: int, threads: int | None = None, carries: bool = False
    ):
        R, hidden, outputs = theta.flat.shape[0], theta.V.shape[-2], theta.V.shape[-1]
        inputs, layers = theta.layers[0].U.shape[-2], len(theta.layers)
        cell = next(name for name, kind in CELLS.items() if type(net.cell) is kind)
        kind, phi, leak = cells.CELLS[cell], 0, np.ones(R)
        if isinstance(net.cell, Elman):
            phi = next(PHI[name] for name, phi in ACTIVATIONS.items() if phi is net.cell.phi)
            leak = leak if net.cell.leak is None else net.cell.leak.double().numpy()
        self.grads, self.o = theta.like(), theta.flat.new_zeros(R, net.loss_steps, batch, outputs)
        flat, dtype = theta.flat.numpy(), theta.flat.numpy().dtype
        slots = [slot for layer in theta.layers for slot in layer] + [theta.V, theta.c]
        at = np.array([slot.storage_offset() - theta.flat.storage_offset() for slot in slots])
        self._names, self._loss = NAMES[cell], LOSSES[net.loss]
        self._no_symbols, self._no_numbers = np.zeros((R, 0, 0, 0), np.uint8), np.zeros((R, 0, 0, 0, 0), dtype)
        self._no_labels, self._no_targets = np.zeros((R, 0, 0, 0), np.int64), np.zeros((R, 0, 0, 0, 0), dtype)
        self._per_run = PerRun(np.zeros(R, np.int64), np.full(R, net.weight(batch)), np.zeros(R), leak)
        self._results = Results(
            np.zeros(R), self.o.numpy(), np.zeros((R, len(SERIES), layers, T)), np.zeros((R, T)), np.zeros(R)
        )
        shape = shape_of(layers, T, net.loss_steps, batch, inputs, hidden, outputs)
        self._net = kind, phi, shape, flat, self.grads.flat.numpy(), at
        states = np.zeros((2, R, layers if carries else 0, kind.states, batch, shape.width), dtype)
        self._carried = Carried(*states)
        self.first_states, self.last_states = (
            [block[..., :hidden] for block in of.flatten(1, 2).unbind(1)] for of in torch.from_numpy(states)
        )
        used = min(R, threads or numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        self._memory = [new_memory(kind, shape, dtype) for _ in range(used)]
        self._chunk = max(1, R // (4 * used))  # runs that a thread takes at a time
        self._pool = ThreadPoolExecutor(used - 1) if used > 1 else None

    def carry(self) -> None:
        """The next mini-batch begins with the last one's `last_states`."""
        self._carried.before[:] = self._carried.after

    def __call__(
        self,
        x: NDArray,
        y: NDArray,
        k: int,
        measure: bool,
        late: NDArray | None = None,
        weight: NDArray | None = None,
        alpha: NDArray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The objective (R,), float64, and the outputs of the last L steps (which the next call overwrites) of mini-batch k of a block.

        x: symbols of one-hot inputs (R, blocks, T, batch), uint8, or numbers (R, blocks, T, batch, inputs).  y: (R, blocks, L, batch, ...).
        late: how many steps each run sits out before its first, (R,); None: none does.
        weight: of one example's E_t in the objective, (R,); None: the net's.
        alpha: of d+Omega/dW in the gradient, (R,), float64; None: Omega is only measured.
        """
        R, x, y = len(x), np.ascontiguousarray(x), np.ascontiguousarray(y)
        given = (x, self._no_numbers) if x.ndim == 4 else (self._no_symbols, x)
        wanted = (y, self._no_targets) if self._loss == CLASSES else (self._no_labels, y)
        never, plain, no_omega, leak = self._per_run
        per_run = PerRun(
            *(never if late is None else late, plain if weight is None else weight),
            *(no_omega if alpha is None else alpha, leak),
        )
        arguments = (*self._net, k, Data(*given, *wanted, self._loss), self._carried, per_run, measure)
        if self._pool is None:
            program(0, R, *arguments, self._memory[0], self._results)
        else:
            starts = iter(range(0, R, self._chunk))  # taken by whoever is free

            def work(memory: Memory) -> None:
                for start in starts:
                    program(start, min(start + self._chunk, R), *arguments, memory, self._results)

            others = [self._pool.submit(work, memory) for memory in self._memory[1:]]
            work(self._memory[0])
            for other in others:
                other.result()
        return torch.from_numpy(self._results.objective.copy()), self.o

    def timesteps(self) -> dict[str, Tensor]:
        """The series (R, layers, T) of the last call, if it measured."""
        series = torch.from_numpy(self._results.series.copy())
        return dict(zip(self._names, series.unbind(1), strict=False))  # only an LSTM has the last

    def curve(self) -> NDArray:
        """log10_norm of dE_T/dh_t in the top layer, (R, T), of the last call, if it measured: what the slope is fitted to."""
        return self._results.curve

    def omega(self) -> Tensor | None:
        """Omega (R,) of the last call, if it measured or had an alpha; None for gated cells, which have none."""
        return torch.from_numpy(self._results.omega.copy()) if self._names is _UNGATED else None
