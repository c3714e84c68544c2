"""From configs to one tensor program: group runs of equal shape, draw each run's parameters and data from its own streams, stack them."""

import math
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_lab import cells, inits
from rnn_lab.activations import ACTIVATIONS
from rnn_lab.cells import GRU, LSTM, Cell, Elman, Leaky, Own
from rnn_lab.config import Config, static_key
from rnn_lab.config import Task as TaskConfig
from rnn_lab.drawing import BLOCK, FEW, Drawers, Recipe, Rng, can_have_processes, packed, unpacked
from rnn_lab.parameters import Parameters
from rnn_lab.tasks import OF_CORPORA, TASKS, Streams, Task, of_corpus

# Programs of 8 to 128 runs train equally fast (H = 50, B = 20, T = 100); so their size is a matter of memory, and of how many runs wait.
MOST_RUNS, MEMORY = 32, 512 * 2**20
# A GPU takes less time a run the more there are: at those sizes 19 microseconds with 64 runs, 5 with 512, 4 with 2048.
MOST_RUNS_ON_A_GPU, MEMORY_OF_A_GPU = 1024, 16 * 2**30


def make_task(config: TaskConfig) -> Task:
    """The task that a config describes, of a fixed length or of a length range. Raises CorpusError."""
    if config.name in OF_CORPORA:
        return of_corpus(config.name, config.path, config.length, config.ahead)
    kind = TASKS[config.name]
    shortest, longest = config.length_range or (config.length, config.length)
    return kind(shortest, longest, **{option: getattr(config, option) for option in kind.options})


def make_cell(configs: list[Config], dtype: torch.dtype, device: str) -> Cell:
    """The cell that all runs of a program share."""
    model = configs[0].model
    match model.name:
        case "elman":
            return Elman(ACTIVATIONS[model.activation])
        case "leaky":
            leak = per_run([config.model.leak for config in configs], device)
            return Leaky(ACTIVATIONS[model.activation], leak.to(dtype))
        case "lstm":
            return LSTM()
        case "gru":
            return GRU()
        case own:
            return Own(cells.OWN[own]())


def programs(configs: list[Config], max_runs: int | None = None, steps: list[int] | None = None) -> list[list[int]]:
    """Indices of the configs that train together, in the order of their first member; none longer than max_runs, or than `best_size`.

    steps: where each run starts; only runs that start at the same step train together.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, (config, step) in enumerate(zip(configs, steps or [0] * len(configs), strict=True)):
        groups[static_key(config), step].append(index)
    cut = []
    for group in groups.values():
        size = max_runs or best_size(configs[group[0]])
        cut += [group[i : i + size] for i in range(0, len(group), size)]
    return cut


def best_size(config: Config) -> int:
    """How many runs to train as one program."""
    here = config.training.device == "cpu"
    most, memory = (MOST_RUNS, MEMORY) if here else (MOST_RUNS_ON_A_GPU, MEMORY_OF_A_GPU)
    return max(1, min(most, memory // bytes_per_run(config)))


def bytes_per_run(config: Config) -> int:
    """What one run of a program takes, within a third: states, gates, adjoints and temporaries of their size (3 and 8 a gate, as measured),
    and a block of mini-batches.
    """
    task, model, number = make_task(config.task), config.model, 4 if config.training.dtype == "float32" else 8
    steps, gates = task.steps * config.training.batch_size, cells.kind(model.name).gates
    inputs = 1 if task.symbols else task.inputs * number  # symbols are bytes
    return steps * ((3 + 8 * gates) * number * model.hidden * model.layers + BLOCK * inputs)


def streams(seed: int) -> tuple[Rng, Rng, np.random.SeedSequence]:
    """A run's random numbers: the generators of initialisation and training data, and the root of one generator for each evaluation."""
    init, train, evaluation = np.random.SeedSequence(seed).spawn(3)
    return np.random.default_rng(init), np.random.default_rng(train), evaluation


def flossing_rng(seed: int, step: int) -> Rng:
    """The generator of the sequences that are flossed on after `step` updates; no other stream moves."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3, step)))


def evaluation_rng(root: np.random.SeedSequence, *key: int) -> Rng:
    """The generator of one evaluation, whichever came before. key: the step, and the task length if it is not the one trained on."""
    return np.random.default_rng(np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, *key)))


def recurrent_matrix(config: Config, z: NDArray[np.float64], links_rng: Rng) -> NDArray[np.float64]:
    """W of one layer from unit normals z, by config.init."""
    init, hidden = config.init, len(z)
    match init.name:
        case "gaussian":
            return inits.gaussian(z, init.scale / math.sqrt(hidden) if init.std is None else init.std)
        case "orthogonal":
            return inits.orthogonal(z, init.scale)
        case "identity":
            return inits.identity(hidden, init.scale)
        case _:
            return inits.sparse(z, init.links, init.scale, links_rng)


def bias(config: Config, hidden: int, gates: int, rng: Rng) -> NDArray[np.float64]:
    """b of one layer, (gates, hidden): 0 but for the gates of which init.forget_bias and init.chrono speak."""
    b, init = np.zeros((gates, hidden)), config.init
    chrono = None if init.chrono is None else inits.chrono(rng.random(hidden), init.chrono)
    match config.model.name:
        case "lstm":  # i, f, g, o
            b[1] = init.forget_bias if chrono is None else chrono
            b[0] = 0 if chrono is None else -chrono
        case "gru" if chrono is not None:  # r, z, n: 1 - z takes the place of an input gate
            b[1] = chrono
    return b


def initialise_(theta: Parameters, config: Config, rng: Rng) -> None:
    """Fills one run's parameters: std of U is input_scale/sqrt(fan in), of V output_scale/sqrt(hidden), unless the std is given; `bias`.

    Unit normals are drawn first, in a fixed order, and then scaled: a seed gives the same draws whatever the scales and the kind of W.
    Each gate has a W of its own of that kind.
    """
    init, (links_rng, bias_rng) = config.init, rng.spawn(2)

    def scaled_normals(like: Tensor, scale: float, std: float | None) -> Tensor:
        z = rng.standard_normal(like.shape)
        return torch.from_numpy(z * (scale / math.sqrt(like.shape[0]) if std is None else std))

    for layer in theta.layers:
        layer.U.copy_(scaled_normals(layer.U, init.input_scale, init.input_std))
        gates = np.split(rng.standard_normal(layer.W.shape), layer.W.shape[-1] // layer.W.shape[-2], axis=1)
        layer.W.copy_(torch.from_numpy(np.hstack([recurrent_matrix(config, z, links_rng) for z in gates])))
        layer.b.copy_(torch.from_numpy(bias(config, layer.W.shape[-2], len(gates), bias_rng).reshape(1, -1)))
    theta.V.copy_(scaled_normals(theta.V, init.output_scale, init.output_std))


def stack_parameters(configs: list[Config], task: Task, rngs: list[Rng], dtype: torch.dtype, device: str) -> Parameters:
    """The initial parameters of all runs, (runs, P)."""
    model = configs[0].model
    sizes, gates = (task.inputs, model.hidden, task.outputs, model.layers), make_cell(configs, dtype, device).gates
    alone = [Parameters.zeros((), *sizes, dtype=dtype, gates=gates) for _ in configs]
    for theta, config, rng in zip(alone, configs, rngs, strict=True):
        initialise_(theta, config, rng)
    stacked = Parameters.zeros((len(configs),), *sizes, dtype=dtype, device=device, gates=gates)
    stacked.flat.copy_(torch.stack([theta.flat for theta in alone]))
    return stacked


class Block(NamedTuple):
    """BLOCK mini-batches of every run.  x, y, late: as in MiniBatches.  states: where the generators stood before, `packed`.
    on_device: x and y.
    """

    x: NDArray
    y: NDArray
    late: NDArray
    states: NDArray
    on_device: tuple[Tensor, Tensor]


class MiniBatches:
    """The runs' mini-batches, each from its own generator, drawn a block at a time.

    ahead: for a GPU, the next block while this one is trained on.
    x: a block, symbols of one-hot inputs (runs, BLOCK, T, batch) as uint8, or numbers (runs, BLOCK, T, batch, inputs).
    y: its targets (runs, BLOCK, L, batch, ...).  drawn: how many mini-batches there have been.
    late: how many of the T steps come before each run's own first, (runs,); None: none in any run.
    """

    x: NDArray
    y: NDArray

    def __init__(
        self, task: Task, rngs: list[Rng], batch_size: int, dtype: torch.dtype, device: str, ahead: bool = False
    ):
        self.task, self.batch_size, self.drawn, self.late = task, batch_size, 0, None
        self._rngs, self._device = rngs, device
        self._states, self._drawers = (
            self._here(),
            cast("Drawers | None", None),
        )  # states: at the beginning of the block
        self._recipe = Recipe(task, batch_size, torch.zeros((), dtype=dtype).numpy().dtype)
        self._thread = ThreadPoolExecutor(1) if ahead and device != "cpu" else None
        self._ahead: Future[Block] | None = None
        self._one_hot = torch.zeros(len(rngs), task.steps, batch_size, task.inputs, dtype=dtype, device=device)

    @property
    def k(self) -> int:
        """Which mini-batch of the block is at hand."""
        return (self.drawn - 1) % BLOCK

    def advance(self) -> None:
        """On to every run's next mini-batch."""
        self.drawn += 1
        if self.k == 0:
            self._next_block()
        late = self._late[:, self.k]
        self.late = torch.from_numpy(late.copy()).to(self._device) if late.any() else None

    def _next_block(self) -> None:
        self.x, self.y, self._late, self._states, self._on_device = (
            self._ahead.result() if self._ahead else self._draw()
        )
        if self._thread:
            self._ahead = self._thread.submit(self._draw)

    def _draw(self) -> Block:
        if self._drawers:
            states, (x, y, late) = self._drawers.states.copy(), self._drawers.draw_all()
        else:
            states, (x, y, late) = self._here(), self._blocks()
            if self._thread and len(self._rngs) >= FEW and can_have_processes():
                self._drawers = Drawers(self._recipe, [x, y, late], self._here())
        on_device = torch.from_numpy(x).to(self._device), torch.from_numpy(y).to(self._device)
        return Block(x, y, late.copy(), states, on_device)

    def _blocks(self) -> list[NDArray]:
        """Of every run: x, y and late of its next BLOCK mini-batches."""
        return self._recipe.draw_all(self._rngs)

    def _here(self) -> NDArray:
        return np.stack([packed(rng) for rng in self._rngs])

    def at_hand(self) -> tuple[Tensor, Tensor]:
        """x and y of the mini-batch at hand as they were drawn: symbols or numbers, targets (runs, L, batch, ...)."""
        x, y = self._on_device
        return x[:, self.k], y[:, self.k]

    def dense(self, x: Tensor) -> Tensor:
        """x as the net sees it, (runs, T, batch, inputs): symbols one-hot, in memory that the next call overwrites."""
        return self._one_hot.zero_().scatter_(-1, x.long().unsqueeze(-1), 1) if x.dtype == torch.uint8 else x

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The mini-batch at hand: x (runs, T, batch, inputs), which the next call overwrites, and y (runs, L, batch, ...)."""
        x, y = self.at_hand()
        return self.dense(x), y

    def targets(self) -> Tensor:
        """y of the mini-batch at hand, (runs, L, batch, ...)."""
        return self._on_device[1][:, self.k]

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next mini-batch of every run, as `tensors` gives it."""
        self.advance()
        return self.tensors()

    def state(self) -> list[dict[str, Any]]:
        """Where each run's generator stood when the block at hand began: with `drawn`, all that `restore` needs."""
        return [unpacked(state) for state in self._states]

    def restore(self, states: list[dict[str, Any]], drawn: int) -> None:
        """Goes (back) to where `drawn` mini-batches have been drawn; the next one is the one that followed then."""
        if self._ahead:
            self._ahead.result()
            self._ahead = None
        for rng, state in zip(self._rngs, states, strict=True):
            rng.bit_generator.state = state
        if self._drawers:
            self._drawers.states[:] = self._here()
        self.drawn = drawn
        if drawn:
            self._next_block()


class Chunks(MiniBatches):
    """Of a task that carries its state: each mini-batch goes on where the run's last one stopped. All that is drawn is the beginning."""

    def __init__(self, task: Streams, rngs: list[Rng], batch_size: int, dtype: torch.dtype, device: str):
        super().__init__(task, rngs, batch_size, dtype, device)
        self._streams, self._starts = task, [task.start(rng) for rng in rngs]

    def _blocks(self) -> list[NDArray]:
        first = (self.drawn - 1) // BLOCK * BLOCK
        read = [self._streams.read(start, first, BLOCK, self.batch_size) for start in self._starts]
        x, y = (self._recipe.typed(np.stack(z)) for z in zip(*read, strict=True))
        return [x, y, np.zeros((len(read), BLOCK), np.int64)]


def mini_batches(
    task: Task, rngs: list[Rng], batch_size: int, dtype: torch.dtype, device: str, ahead: bool = False
) -> MiniBatches:
    """What a task is trained on."""
    if isinstance(task, Streams):
        return Chunks(task, rngs, batch_size, dtype, device)
    return MiniBatches(task, rngs, batch_size, dtype, device, ahead)


def per_run(values: list[float], device: str) -> Tensor:
    """A hyperparameter of each run, (runs,), float64."""
    return torch.tensor(values, dtype=torch.float64, device=device)
