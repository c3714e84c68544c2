"""The Elman kernel as the training loop calls it: PyTorch's tensors outside, NumPy's views of the same memory inside."""

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
from rnn_lab.cells import Elman
from rnn_lab.kernels import elman
from rnn_lab.kernels.functions import PHI
from rnn_lab.parameters import Parameters

SERIES = ("dE_dh/log10_norm", "delta/log10_norm", "h/norm", "phi_prime/mean")


class _Compiling(Listener):
    """Hears of what Numba compiles; loading from the cache is not among it."""

    def on_start(self, event: Event) -> None:
        if (event.data or {}).get("dispatcher") is elman.program:
            kernels.say("compiling the Elman kernel, once for this machine and dtype: about 20 s")

    def on_end(self, event: Event) -> None:
        pass


register("numba:compile", _Compiling())


class Program:
    """Objective, gradients and series of a program of R runs, (R, ...), on the CPU. `grads` is filled anew by every call.

    threads: None is one a core (NUMBA_NUM_THREADS says otherwise). They are Python's, outside the interpreter for as long as they compute:
    nothing spins while the loop does other things, a thread that is held up holds up no other, and a process that forks later is safe, as
    under OpenMP it is not.
    Memory: (layers + 1 or 2) (T + 1) B H entries a thread, however many runs.
    """

    def __init__(self, theta: Parameters, net: Net, T: int, batch: int, threads: int | None = None):
        R, hidden, outputs = theta.flat.shape[0], theta.V.shape[-2], theta.V.shape[-1]
        inputs, layers = theta.layers[0].U.shape[-2], len(theta.layers)
        self.grads, self.o = theta.like(), theta.flat.new_zeros(R, net.loss_steps, batch, outputs)
        flat, dtype = theta.flat.numpy(), theta.flat.numpy().dtype
        slots = [slot for layer in theta.layers for slot in layer] + [theta.V, theta.c]
        at = np.array([slot.storage_offset() - theta.flat.storage_offset() for slot in slots])
        assert isinstance(net.cell, Elman)
        phi = next(PHI[name] for name, phi in ACTIVATIONS.items() if phi is net.cell.phi)
        self._classes = net.loss is losses.softmax_cross_entropy
        self._no_symbols, self._no_numbers = np.zeros((R, 0, 0, 0), np.uint8), np.zeros((R, 0, 0, 0, 0), dtype)
        self._no_labels, self._no_targets = np.zeros((R, 0, 0, 0), np.int64), np.zeros((R, 0, 0, 0, 0), dtype)
        self._never, self._weight = np.zeros(R, np.int64), np.full(R, net.weight(batch))
        self._objective, self._series = np.zeros(R), np.zeros((R, len(SERIES), layers, T))
        self._parameters, self._shape = (flat, self.grads.flat.numpy(), at), (inputs, hidden, phi)
        self._out = self._objective, self.o.numpy(), self._series
        used = min(R, threads or numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        self._scratch = [
            elman.new_scratch(layers, T, net.loss_steps, batch, inputs, hidden, outputs, dtype) for _ in range(used)
        ]
        self._chunk = max(1, R // (4 * used))  # runs that a thread takes at a time
        self._pool = ThreadPoolExecutor(len(self._scratch) - 1) if len(self._scratch) > 1 else None

    def __call__(
        self, x: NDArray, y: NDArray, k: int, measure: bool, late: NDArray | None = None, weight: NDArray | None = None
    ) -> tuple[Tensor, Tensor]:
        """The objective (R,), float64, and the outputs of the last L steps (which the next call overwrites) of mini-batch k of a block.

        x: symbols of one-hot inputs (R, blocks, T, batch), uint8, or numbers (R, blocks, T, batch, inputs).  y: (R, blocks, L, batch, ...).
        late: how many steps each run sits out before its first, (R,); None: none does.
        weight: of one example's E_t in the objective, (R,); None: the net's.
        """
        R, x, y = len(x), np.ascontiguousarray(x), np.ascontiguousarray(y)
        given = (x, self._no_numbers) if x.ndim == 4 else (self._no_symbols, x)
        wanted = (y, self._no_targets) if self._classes else (self._no_labels, y)
        late, weight = self._never if late is None else late, self._weight if weight is None else weight
        arguments = (*self._parameters, *given, *wanted, k, late, *self._shape, weight, measure)
        if self._pool is None:
            elman.program(0, R, *arguments, self._scratch[0], *self._out)
        else:
            starts = iter(range(0, R, self._chunk))  # taken by whoever is free

            def work(scratch: tuple) -> None:
                for start in starts:
                    elman.program(start, min(start + self._chunk, R), *arguments, scratch, *self._out)

            others = [self._pool.submit(work, scratch) for scratch in self._scratch[1:]]
            work(self._scratch[0])
            for other in others:
                other.result()
        return torch.from_numpy(self._objective.copy()), self.o

    def timesteps(self) -> dict[str, Tensor]:
        """The series (R, layers, T) of the last call, if it measured."""
        return {name: torch.from_numpy(self._series[:, n].copy()) for n, name in enumerate(SERIES)}
