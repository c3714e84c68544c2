"""How fast is an update? Every contender does the same: draw data, forward, backward, norms where it says so, clip, step.

    python experiments/benchmark.py [--json FILE] [--rounds 7] [--scaling]

H = 50, B = 20, T = 100, temporal order, float32, SGD + norm clipping, one thread unless the name says `all_cores`. Contenders run in turns,
and a ratio is the median over the rounds of two neighbours' rates: a machine that others use too slows both. After the same updates all
runs of seed 0 must have the same loss, or nothing is printed but the difference. JAX (extra `bench`) runs in processes of its own, bound to
one core or to all, since XLA takes its threads once and for all.
"""

import argparse
import atexit
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

os.environ.setdefault("JAX_PLATFORMS", "cpu")
T, BATCH, HIDDEN, INPUTS, OUTPUTS = 100, 20, 50, 6, 4
LR, THRESHOLD = 0.01, 1.0
FLOPS = 3 * 2 * T * BATCH * HIDDEN**2  # h W, delta W^T and h^T delta; one-hot inputs need no product
TARGETS = {
    "single_vs_loop": 9,
    "single_vs_rnn": 5,
    "many_vs_loop": 10,
    "many_vs_jax": 1.8,
    "many_vs_jax_all_cores": 1.8,
    "roofline": 0.5,
    "reference_vs_loop": 5.5,
    "probe_cost": 1.15,  # at most
    "track_cost": 1.05,  # at most
}
Updates = Iterator[
    float
]  # each next() does UPDATES[name] updates of every run and returns the last loss of seed 0, at its start


def config(seed: int, **values):
    from rnn_lab.config import Config

    c = Config(seed=seed)
    c.task.length, c.clip.name, c.clip.threshold, c.optimizer.lr = T, "norm", THRESHOLD, LR
    c.training = replace(c.training, updates=10**9, batch_size=BATCH, **values)
    return c


def lab(runs: int, updates: int, log_every: int, kernel: str, threads: int | None, spectrum: bool = True) -> Updates:
    """Our own loop as it is; a row, with all norms through time, every log_every updates."""
    import numba

    from rnn_lab.training import train

    configs = [config(seed, log_every=log_every, kernel=kernel) for seed in range(runs)]
    for c in configs:
        c.probe.spectrum_every = None if spectrum else 10**9
    before, numba.config.NUMBA_NUM_THREADS = numba.config.NUMBA_NUM_THREADS, threads or numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    rows = train(configs)
    next(rows)
    numba.config.NUMBA_NUM_THREADS = before  # type: ignore[attr-defined]
    for row in rows:
        if row.step % updates == 0:
            yield float(row.scalars["train/loss"][0])


def data(runs: int):
    import torch

    from rnn_lab import vectorize
    from rnn_lab.tasks import TASKS

    rngs = [vectorize.streams(seed)[1] for seed in range(runs)]
    return vectorize.MiniBatches(TASKS["temporal_order"](T), rngs, BATCH, torch.float32, "cpu")


def initial(runs: int):
    import torch

    from rnn_lab import vectorize
    from rnn_lab.tasks import TASKS

    configs = [config(seed) for seed in range(runs)]
    rngs = [vectorize.streams(seed)[0] for seed in range(runs)]
    return vectorize.stack_parameters(configs, TASKS["temporal_order"](T), rngs, torch.float32, "cpu")


def torch_loop(updates: int, cell: bool) -> Updates:
    """The usual PyTorch program. cell: RNNCell in a Python loop, retain_grad on every state, its norms; else nn.RNN and no norms."""
    import torch

    theta, batches = initial(1), data(1)
    net = torch.nn.RNNCell(INPUTS, HIDDEN) if cell else torch.nn.RNN(INPUTS, HIDDEN)
    out = torch.nn.Linear(HIDDEN, OUTPUTS)
    suffix, layer = ("" if cell else "_l0"), theta.layers[0]
    with torch.no_grad():
        for name, value in (("weight_ih", layer.U[0].T), ("weight_hh", layer.W[0].T), ("bias_ih", 0), ("bias_hh", 0)):
            getattr(net, name + suffix).copy_(torch.as_tensor(value))
        out.weight.copy_(theta.V[0].T)
        out.bias.zero_()
    getattr(net, "bias_hh" + suffix).requires_grad_(False)  # there is one bias here
    parameters = [p for p in (*net.parameters(), *out.parameters()) if p.requires_grad]
    sgd = torch.optim.SGD(parameters, lr=LR)
    while True:
        for _ in range(updates):
            x, y = (value[0] for value in batches.draw())
            if cell:
                h, states = torch.zeros(BATCH, HIDDEN), []
                for x_t in x:
                    h = net(x_t, h)
                    h.retain_grad()
                    states.append(h)
            else:
                h, states = net(x)[0][-1], []
            loss = torch.nn.functional.cross_entropy(out(h), y[0])
            sgd.zero_grad()
            loss.backward()
            if cell:
                torch.stack([h.grad for h in states]).norm(dim=-1).square().mean(-1).sqrt().log10()
            torch.nn.utils.clip_grad_norm_(parameters, THRESHOLD)
            sgd.step()
        yield loss.item()


def jax_program(runs: int, updates: int) -> Updates:
    """jit(vmap(grad(scan))) of the same update. Gradients of all states are those of zeros added to them."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    theta, batches = initial(runs), data(runs)
    layer = theta.layers[0]
    parameters = {"U": layer.U, "W": layer.W, "b": layer.b, "V": theta.V, "c": theta.c}
    parameters = {name: jnp.asarray(p.numpy()) for name, p in parameters.items()}

    def loss(p, zeros, x, y):
        def step(h, given):
            x_t, zero = given
            return jnp.tanh(x_t @ p["U"] + h @ p["W"] + p["b"]) + zero, None

        h, _ = jax.lax.scan(step, jnp.zeros((BATCH, HIDDEN)), (x, zeros))
        log_yhat = jax.nn.log_softmax(h @ p["V"] + p["c"])
        return -jnp.take_along_axis(log_yhat, y[0][:, None], 1).mean()

    def update(p, x, y):
        zeros = jnp.zeros((T, BATCH, HIDDEN))
        value, (g, dE_dh) = jax.value_and_grad(loss, (0, 1))(p, zeros, x, y)
        norm = jnp.sqrt(sum((v**2).sum() for v in g.values()))
        factor = jnp.where(norm >= THRESHOLD, THRESHOLD / norm, 1.0)
        log10_norm = 0.5 * jnp.log10((dE_dh**2).sum(-1).mean(-1))
        return {name: p[name] - LR * factor * g[name] for name in p}, value, log10_norm

    program = jax.jit(jax.vmap(update))
    while True:
        for _ in range(updates):
            x, y = batches.draw()
            parameters, value, log10_norm = program(parameters, x.numpy().copy(), y.numpy())  # JAX may keep the memory
        log10_norm.block_until_ready()
        yield float(value[0])


def serve(connection, cores: list[int], make: Callable[[], Updates]) -> None:
    """A contender in a process of its own: seconds and loss of each turn."""
    os.sched_setaffinity(0, cores)
    turns = make()
    while connection.recv():
        start = time.perf_counter()
        loss = next(turns)
        connection.send((time.perf_counter() - start, loss))


def elsewhere(cores: list[int], make: Callable[[], Updates]) -> Callable[[], tuple[float, float]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs, cores, make), daemon=True).start()
    atexit.register(ours.send, False)

    def turn() -> tuple[float, float]:
        ours.send(True)
        return ours.recv()

    return turn


def here(turns: Updates) -> Callable[[], tuple[float, float]]:
    def turn() -> tuple[float, float]:
        start = time.perf_counter()
        loss = next(turns)
        return time.perf_counter() - start, loss

    return turn


def sgemm_peak() -> float:
    """FLOPs a second of one core's best large product."""
    import torch

    a, b, out, best = torch.rand(768, 768), torch.rand(768, 768), torch.empty(768, 768), 0.0
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2 * 768**3 / (time.perf_counter() - start))
    return best


def contenders(many: int) -> dict[str, tuple[int, int, Callable[[], tuple[float, float]]]]:
    """name -> (runs, updates a turn, turn). A row of ours needs a step that log_every divides: every turn ends on one."""
    cores = sorted(os.sched_getaffinity(0))
    found = {
        "loop": (1, 20, here(torch_loop(20, cell=True))),
        "rnn": (1, 20, here(torch_loop(20, cell=False))),
        "single": (1, 100, here(lab(1, 100, 1, "numba", 1))),
        "single_unprobed": (1, 100, here(lab(1, 100, 100, "numba", 1, spectrum=False))),
        "many": (many, 10, here(lab(many, 10, 1, "numba", 1))),
        "many_all_cores": (many, 10, here(lab(many, 10, 1, "numba", None))),
        "reference": (8, 20, here(lab(8, 20, 20, "reference", 1, spectrum=False))),
        "probed": (8, 100, here(lab(8, 100, 10, "numba", 1))),
        "unprobed": (8, 100, here(lab(8, 100, 100, "numba", 1, spectrum=False))),
    }
    if find_spec("jax"):
        found["jax"] = (many, 10, elsewhere(cores[:1], partial(jax_program, many, 10)))
        found["jax_all_cores"] = (many, 10, elsewhere(cores, partial(jax_program, many, 10)))
    return found


def check_losses(entries: dict) -> None:
    """Everybody's first turns, until 100 updates are done: seed 0 must have come to the same loss. (Ours is measured before an update.)"""
    import torch

    finals = {}
    for name, (_, updates, turn) in entries.items():
        for _ in range(100 // updates):
            finals[name] = turn()[1]
    ours = [v for name, v in finals.items() if name not in ("loop", "rnn", "jax", "jax_all_cores")]
    theirs = [v for name, v in finals.items() if name in ("loop", "rnn", "jax", "jax_all_cores")]
    for group in (ours, theirs):
        torch.testing.assert_close(torch.tensor(group), torch.full((len(group),), group[0]), rtol=2e-3, atol=2e-3)
    print(f"loss after 100 updates: {ours[0]:.5f} (ours, mini-batch 101), {theirs[0]:.5f} (the others, mini-batch 100)")


def track_cost(rounds: int, runs: int = 16, updates: int = 500) -> float:
    """Seconds of a program whose runs are recorded in wandb over those without, from its first row to the end of its recording.

    The wandb process starts and imports meanwhile: a second or two that count for less the longer a program trains.
    """
    from rnn_lab.recording import wandb
    from rnn_lab.recording.progress import Progress
    from rnn_lab.runner import Job, run_program

    def seconds(tracker: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            jobs = []
            for seed in range(runs):
                c = config(seed, log_every=10, kernel="numba")
                c.training.updates, c.tracker.name = updates, tracker
                directory = Path(folder, str(seed))
                directory.mkdir()
                jobs.append(Job(c, directory, {}))
            start = time.perf_counter()
            run_program(jobs, Progress(runs, runs * updates))
            wandb.close()
            return time.perf_counter() - start

    seconds("none")
    return median(seconds("wandb") / seconds("none") for _ in range(rounds))


def measure(rounds: int, many: int) -> dict:
    import torch

    torch.set_num_threads(1)
    entries = contenders(many)
    check_losses(entries)
    rates: dict[str, list[float]] = {name: [] for name in entries}
    peaks = []
    for _ in range(rounds):
        for name, (runs, updates, turn) in entries.items():
            rates[name].append(runs * updates / turn()[0])
        peaks.append(sgemm_peak())

    def ratio(a: str, b: str) -> float | None:
        return median(x / y for x, y in zip(rates[a], rates[b], strict=True)) if a in rates and b in rates else None

    ratios = {
        "single_vs_loop": ratio("single", "loop"),
        "single_vs_rnn": ratio("single_unprobed", "rnn"),
        "many_vs_loop": ratio("many", "loop"),
        "many_vs_jax": ratio("many", "jax"),
        "many_vs_jax_all_cores": ratio("many_all_cores", "jax_all_cores"),
        "roofline": median(r * FLOPS / p for r, p in zip(rates["many"], peaks, strict=True)),
        "reference_vs_loop": ratio("reference", "loop"),
        "probe_cost": ratio("unprobed", "probed"),
        "track_cost": track_cost(rounds // 2 + 1),
    }
    found = {name: median(values) for name, values in rates.items()} | {"sgemm_peak_gflops": median(peaks) / 1e9}
    return {"rates": found, "ratios": ratios}


def scaling() -> dict[str, float]:
    """Updates of one run a second against R and T, and microseconds a run and step; no rows."""
    global T
    found = {}
    for R in (1, 8, 64, 512):
        turn = here(lab(R, 2, 2, "numba", 1, spectrum=False))
        turn()
        found[f"R={R}"] = median(2 * R / turn()[0] for _ in range(5))
    for length in (10, 30, 100, 300, 1000):
        T = length
        turn = here(lab(8, 2, 2, "numba", 1, spectrum=False))
        turn()
        found[f"T={length}"] = median(16 / turn()[0] for _ in range(5))
    T = 100
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write rates and ratios to this file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=64, help="runs of a program")
    parser.add_argument("--scaling", action="store_true", help="against R and T too")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.many)
    for name, rate in found["rates"].items():
        print(f"  {name:24s} {rate:9.1f}" + (" updates of a run a second" if "gflops" not in name else ""))
    for name, value in found["ratios"].items():
        print(f"  {name:24s} {'not measured' if value is None else f'{value:9.2f}'}   target {TARGETS[name]}")
    if arguments.scaling:
        found["scaling"] = scaling()
        for name, rate in found["scaling"].items():
            print(f"  {name:24s} {rate:9.1f} updates of a run a second")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
