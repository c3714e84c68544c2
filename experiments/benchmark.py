"""How fast is an update, and a whole sweep? Every contender does the same: data, forward, backward, norms if it says so, clip, step.

    python experiments/benchmark.py [--json FILE] [--quick] [--rounds 7] [--many 64]

H = 50, B = 20, T = 100, temporal order, float32, SGD + norm clipping, one thread unless the name says `all_cores`. Contenders run in turns,
and a ratio is the median over the rounds of two neighbours' rates: a machine that others use too slows both. After the same updates all
runs of seed 0 must have the same loss, or nothing is printed but the difference. JAX (extra `bench`; skipped without it) runs in processes
of its own, bound to one core or to all, since XLA takes its threads once and for all. Whole sweeps run through the command line.

    single_vs_loop, many_vs_loop      all series of all time steps at every update, against RNNCell in a loop with retain_grad
    single_vs_rnn                     no rows, against nn.RNN + autograd
    many_vs_jax[_all_cores]           a program of `--many` runs with its rows, against jit(vmap(grad(scan))) with gradients of all states
    roofline, roofline_measured       FLOPs of the three products over the peak of sgemm; the second with all series at every update
    reference_vs_loop                 a program of the reference without rows, the best of two sizes
    probe_cost                        time with a row every 10 updates and spectra as by default over time without
    lstm_vs_torch, gru_vs_torch       a program without rows against nn.LSTM, nn.GRU + autograd
    kernel_vs_reference               a program of the kernel against one of the reference, without rows
    track_cost                        time of a sweep with tracker=wandb over tracker=none, through the command line
    track_running[_all], track_setup_ms    of a long program with a row every 10 updates and one heatmap (all); ms a run besides
    sweep_vs_basic                    time of a sweep under Hydra's basic launcher over its time under ours, on all cores
    linear_R, linear_T, linear_threads    largest over smallest time per run and step (threads: efficiency of all cores)
    memory_vs_formula                 peak memory that a program adds over `memory_formula`

--device cuda measures a GPU instead: see benchmark_gpu.py.
"""

import argparse
import atexit
import json
import multiprocessing
import os
import platform
import subprocess
import sys
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
TARGETS = {  # at least, but for the costs
    "single_vs_loop": 9,
    "single_vs_rnn": 5,
    "many_vs_loop": 10,
    "many_vs_jax": 1.8,
    "many_vs_jax_all_cores": 1.8,
    "roofline": 0.5,
    "reference_vs_loop": 5.5,
    "track_cost": 1.05,  # at most
    "track_running": 1.05,
    "track_running_all": 1.10,
    "track_setup_ms": 25,
    "probe_cost": 1.15,
    "lstm_vs_torch": 3,
    "gru_vs_torch": 3,
    "sweep_vs_basic": 3,
    "untrained_ms_a_run": 60,
    "linear_R": 1.2,
    "linear_T": 1.2,
    "memory_vs_formula": 1.2,
}
Turn = Callable[[], tuple[float, float]]  # does its updates, returns seconds and the last loss of seed 0
Updates = Iterator[float]  # each next() does a turn of updates of every run


def config(seed: int, model: str = "elman", length: int = T, hidden: int = HIDDEN, **values):
    from rnn_lab.config import Config

    c = Config(seed=seed)
    c.task.length, c.clip.name, c.clip.threshold, c.optimizer.lr = length, "norm", THRESHOLD, LR
    c.model.name, c.model.hidden = model, hidden
    c.training = replace(c.training, updates=10**9, batch_size=BATCH, **values)
    return c


def lab(
    runs: int, updates: int, log_every: int, kernel: str, threads: int | None, spectrum: bool = True, **sizes
) -> Updates:
    """Our own loop as it is; a row, with all series through time, every log_every updates, and the loss of the last one."""
    import numba

    from rnn_lab.training import Training

    configs = [config(seed, log_every=log_every, kernel=kernel, **sizes) for seed in range(runs)]
    for c in configs:
        c.probe.spectrum_every = None if spectrum else 10**9
    before, numba.config.NUMBA_NUM_THREADS = numba.config.NUMBA_NUM_THREADS, threads or numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    training = Training(configs)
    numba.config.NUMBA_NUM_THREADS = before  # type: ignore[attr-defined]
    (row,) = training.advance()
    while True:
        for _ in range(updates):
            row = [row, *training.advance()][-1]
        yield float(row.scalars["train/loss"][0])


def data(runs: int, device: str = "cpu"):
    import torch

    from rnn_lab import vectorize
    from rnn_lab.tasks import TASKS

    rngs = [vectorize.streams(seed)[1] for seed in range(runs)]
    return vectorize.MiniBatches(TASKS["temporal_order"](T), rngs, BATCH, torch.float32, device, ahead=True)


def initial(runs: int, model: str = "elman"):
    import torch

    from rnn_lab import vectorize
    from rnn_lab.tasks import TASKS

    configs = [config(seed, model) for seed in range(runs)]
    rngs = [vectorize.streams(seed)[0] for seed in range(runs)]
    return vectorize.stack_parameters(configs, TASKS["temporal_order"](T), rngs, torch.float32, "cpu")


def torch_loop(updates: int, kind: str, model: str = "elman", device: str = "cpu") -> Updates:
    """The usual PyTorch program. kind: RNNCell in a Python loop, with retain_grad on every state and its norms; or RNN, LSTM, GRU."""
    import torch

    theta, batches, cell = initial(1, model), data(1, device), kind == "RNNCell"
    net, out = getattr(torch.nn, kind)(INPUTS, HIDDEN), torch.nn.Linear(HIDDEN, OUTPUTS)
    suffix, layer = ("" if cell else "_l0"), theta.layers[0]
    given = (("weight_ih", layer.U[0].T), ("weight_hh", layer.W[0].T), ("bias_ih", layer.b[0, 0]), ("bias_hh", 0))
    with torch.no_grad():
        for name, value in given:
            getattr(net, name + suffix).copy_(torch.as_tensor(value))
        out.weight.copy_(theta.V[0].T)
        out.bias.zero_()
    getattr(net, "bias_hh" + suffix).requires_grad_(False)  # there is one bias here
    net, out = net.to(device), out.to(device)
    parameters = [p for p in (*net.parameters(), *out.parameters()) if p.requires_grad]
    sgd = torch.optim.SGD(parameters, lr=LR)
    while True:
        for _ in range(updates):
            x, y = (value[0] for value in batches.draw())
            if cell:
                h, states = torch.zeros(BATCH, HIDDEN, device=device), []
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


def jax_program(runs: int, updates: int, device: str = "cpu") -> Updates:
    """jit(vmap(grad(scan))) of the same update. Gradients of all states are those of zeros added to them."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU it would be 11 bits of float32's 24
    theta, batches = initial(runs), data(runs, device)
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
            x, y = (jnp.from_dlpack(given.clone()) for given in (x, y.int()))  # JAX may keep the memory
            parameters, value, log10_norm = program(parameters, x, y)
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


Contender = tuple[int, int, str, Turn]  # runs, updates a turn, whose loss it must have, turn


def contenders(many: int) -> dict[str, Contender]:
    """Ours have a row at update 100, where losses are compared, whatever else they have: those without probes one every 100 updates."""
    cores = sorted(os.sched_getaffinity(0))
    found: dict[str, Contender] = {
        "loop": (1, 20, "elman", here(torch_loop(20, "RNNCell"))),
        "rnn": (1, 20, "elman", here(torch_loop(20, "RNN"))),
        "single": (1, 100, "ours", here(lab(1, 100, 1, "numba", 1))),
        "single_unprobed": (1, 100, "ours", here(lab(1, 100, 100, "numba", 1, spectrum=False))),
        "many": (many, 10, "ours", here(lab(many, 10, 1, "numba", 1))),
        "many_all_cores": (many, 10, "ours", here(lab(many, 10, 1, "numba", None))),
        "many_unprobed": (many, 10, "ours", here(lab(many, 10, 100, "numba", 1, spectrum=False))),
        "reference_8": (8, 20, "ours", here(lab(8, 20, 100, "reference", 1, spectrum=False))),
        "reference_16": (16, 20, "ours", here(lab(16, 20, 100, "reference", 1, spectrum=False))),
        "probed": (8, 100, "ours", here(lab(8, 100, 10, "numba", 1))),
        "unprobed": (8, 100, "ours", here(lab(8, 100, 100, "numba", 1, spectrum=False))),
    }
    for model in ("lstm", "gru"):
        found[f"{model}_torch"] = (1, 20, model, here(torch_loop(20, model.upper(), model)))
        found[model] = (8, 20, f"our {model}", here(lab(8, 20, 100, "numba", 1, spectrum=False, model=model)))
    if find_spec("jax"):
        found["jax"] = (many, 10, "elman", elsewhere(cores[:1], partial(jax_program, many, 10)))
        found["jax_all_cores"] = (many, 10, "elman", elsewhere(cores, partial(jax_program, many, 10)))
    else:
        print("JAX is not installed (pip install '.[bench]'): no ratios against it")
    return found


def check_losses(entries: dict[str, Contender]) -> None:
    """Everybody's first turns, until 100 updates are done: seed 0 must have come to the same loss. (Ours is measured before an update.)"""
    import torch

    finals: dict[str, dict[str, float]] = {}
    for name, (_, updates, group, turn) in entries.items():
        for _ in range(100 // updates):
            loss = turn()[1]
        finals.setdefault(group, {})[name] = loss
    for group, losses in finals.items():
        wanted = next(iter(losses.values()))
        torch.testing.assert_close(
            torch.tensor(list(losses.values())), torch.full((len(losses),), wanted), rtol=2e-3, atol=2e-3
        )
        print(
            f"loss after 100 updates: {wanted:.5f}  {', '.join(losses)}"
            + (" (mini-batch 101)" if "our" in group else "")
        )


def tracking(rounds: int, runs: int = 16) -> dict[str, float]:
    """What recording in wandb adds to a program, until all is recorded: to an update, and to a run whatever its length.

    Two lengths tell these apart. The process that records is there before the clock starts: a sweep starts it while it imports torch.
    """
    from rnn_lab.recording import wandb
    from rnn_lab.recording.progress import Progress
    from rnn_lab.runner import Job, run_program

    def seconds(series: str, updates: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            jobs = []
            for seed in range(runs):
                c = config(seed, log_every=10, kernel="numba")
                c.training.updates, c.tracker.name = updates, "wandb" if series else "none"
                c.tracker.series = series or "dE_dh"
                directory = Path(folder, str(seed))
                directory.mkdir()
                jobs.append(Job(c, directory, {}))
            if series:
                wandb.prepare()
                time.sleep(5)
            start = time.perf_counter()
            run_program(jobs, Progress(runs, runs * updates), checkpoint_seconds=1e9)
            wandb.close()
            return time.perf_counter() - start

    short, long = 200, 1000
    seconds("", short)
    found: dict[str, list[float]] = {"track_running": [], "track_running_all": [], "track_setup_ms": []}
    for _ in range(rounds):
        times = {series: (seconds(series, short), seconds(series, long)) for series in ("", "dE_dh", "all")}
        slopes = {series: (b - a) / (long - short) for series, (a, b) in times.items()}
        ends = {series: a - short * slopes[series] for series, (a, _) in times.items()}
        found["track_running"].append(slopes["dE_dh"] / slopes[""])
        found["track_running_all"].append(slopes["all"] / slopes[""])
        found["track_setup_ms"].append(1000 * (ends["dE_dh"] - ends[""]) / runs)
    return {name: median(values) for name, values in found.items()}


def measure(rounds: int, many: int) -> tuple[dict[str, float], dict[str, float]]:
    """Rates and ratios of updates."""
    import torch

    torch.set_num_threads(1)
    entries = contenders(many)
    check_losses(entries)
    rates: dict[str, list[float]] = {name: [] for name in entries} | {"sgemm_peak_gflops": []}
    for _ in range(rounds):
        for name, (runs, updates, _, turn) in entries.items():
            rates[name].append(runs * updates / turn()[0])
        rates["sgemm_peak_gflops"].append(sgemm_peak() / 1e9)

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(rates[a], rates[b], strict=True))

    ratios = {
        "single_vs_loop": ratio("single", "loop"),
        "single_vs_rnn": ratio("single_unprobed", "rnn"),
        "many_vs_loop": ratio("many", "loop"),
        "roofline": ratio("many_unprobed", "sgemm_peak_gflops") * FLOPS / 1e9,
        "roofline_measured": ratio("many", "sgemm_peak_gflops") * FLOPS / 1e9,
        "reference_vs_loop": max(ratio("reference_8", "loop"), ratio("reference_16", "loop")),
        "kernel_vs_reference": ratio("many_unprobed", "reference_8"),
        "probe_cost": ratio("unprobed", "probed"),
        **tracking(rounds // 2 + 1),
        "lstm_vs_torch": ratio("lstm", "lstm_torch"),
        "gru_vs_torch": ratio("gru", "gru_torch"),
    }
    if "jax" in rates:
        ratios["many_vs_jax"] = ratio("many", "jax")
        ratios["many_vs_jax_all_cores"] = ratio("many_all_cores", "jax_all_cores")
    return {name: median(values) for name, values in rates.items()}, ratios


def command_line(*overrides: str) -> float:
    """Seconds of a sweep through train.py, in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(__file__).with_name("train.py").resolve()
        environment = os.environ | {"WANDB_SILENT": "true"}
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, str(program), "-m", *overrides],
            cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - start


def sweeps(rounds: int, quick: bool) -> dict[str, float]:
    """Ratios of whole sweeps, and milliseconds a run of one that trains nothing."""
    common = ("clip=norm", "training.kernel=numba")
    runs, untrained = (20, 50) if quick else (200, 1000)
    tracked = (*common, "seed=range(8)", f"training.updates={100 if quick else 1000}", "training.log_every=10")
    swept = (*common, f"seed=range({runs})", "task.length=50", "training.updates=100")
    command_line(*tracked, "training.updates=0")  # warm caches
    costs, speeds = [], []
    for _ in range(1 if quick else max(1, rounds // 2)):
        costs.append(command_line(*tracked, "tracker=wandb") / command_line(*tracked, "tracker=none"))
    for _ in range(1 if quick else 2):
        speeds.append(command_line(*swept, "hydra/launcher=basic") / command_line(*swept))
    seconds = command_line(*common, f"seed=range({untrained})", "training.updates=0")
    return {
        "track_cost": median(costs),
        "sweep_vs_basic": median(speeds),
        "untrained_ms_a_run": 1000 * seconds / untrained,
    }


def scaling(rounds: int, quick: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds per run and step against R, T, H, all cores; and how far from linear they are."""
    few = quick and 2
    sizes = {f"R={R}": (R, {}) for R in (1, 8, 64, 512)[: few or 4]}
    sizes |= {f"T={length}": (8, {"length": length}) for length in (10, 30, 100, 300, 1000)[: few or 5]}
    sizes |= {f"H={hidden}": (8, {"hidden": hidden}) for hidden in (16, 32, 50, 64, 128, 256, 512)[: few or 7]}
    cases = {name: (R, 1, more) for name, (R, more) in sizes.items()}
    cases |= {"threads=all": (64, None, {}), "threads=1": (64, 1, {})}
    turns: dict[str, tuple[int, Callable[[], tuple[float, float]]]] = {}
    for name, (R, threads, more) in cases.items():
        steps, size = R * more.get("length", T), (more.get("hidden", HIDDEN) / HIDDEN) ** 2
        updates = max(2, int(4e4 / steps / size))
        turns[name] = (updates * steps, here(lab(R, updates, 10**9, "numba", threads, spectrum=False, **more)))
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, (steps, turn) in turns.items():
            times[name].append(1e6 * turn()[0] / steps)
    found = {name: median(values[1:] or values) for name, values in times.items()}

    def spread(*names: str) -> float:
        return max(found[n] for n in names) / min(found[n] for n in names)

    return found, {
        "linear_R": spread(*(n for n in found if n.startswith("R="))),
        "linear_T": spread(*(n for n in found if n.startswith("T="))),
        "linear_threads": found["threads=1"] / found["threads=all"] / len(os.sched_getaffinity(0)),
    }


def memory_formula(R: int, length: int, threads: int = 1) -> float:
    """Bytes that Elman runs on temporal order add, with rows: T B (50 + 16 inputs) + 64 parameters a run, 4 T B H a thread.

    16 mini-batches of symbols as bytes, twice while they are drawn; a mini-batch one-hot, and in float64 for the theory at step 0;
    gradients, optimiser, clip and rows; and the states of the run at hand, H padded to 56. Parameters count less in large programs, whose
    temporaries the allocator gives back, and more in short sequences: at T = 20 it may be off by a half.
    """
    parameters = INPUTS * HIDDEN + HIDDEN**2 + HIDDEN + HIDDEN * OUTPUTS + OUTPUTS
    return threads * 4 * length * BATCH * 56 + R * (length * BATCH * (50 + 16 * INPUTS) + 16 * 4 * parameters)


def peak_memory(connection, R: int, length: int) -> None:
    """In a process of its own (Linux): bytes by which the peak grows when a program of R runs is built and trained."""

    def peak() -> int:  # ru_maxrss would be the parent's, where that was larger
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    rows = lab(2, 1, 1, "numba", 1, spectrum=False, length=10)
    next(rows)  # imports, compiled code
    before = peak()
    rows = lab(R, 1, 1, "numba", 1, spectrum=False, length=length)
    for _ in range(2):
        next(rows)
    connection.send(peak() - before)


def memory(quick: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Megabytes against R and T, and the largest ratio to the formula (either way)."""
    context, found, worst = multiprocessing.get_context("spawn"), {}, 1.0
    for R, length in ((512, 200), (1024, 200), (512, 800))[: 1 if quick else 3]:
        ours, theirs = context.Pipe()
        process = context.Process(target=peak_memory, args=(theirs, R, length))
        process.start()
        size = ours.recv()
        process.join()
        found[f"MB R={R} T={length}"] = size / 1e6
        ratio = size / memory_formula(R, length)
        worst = max(worst, ratio, 1 / ratio)
    return found, {"memory_vs_formula": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write rates and ratios to this file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--many", type=int, default=64, help="runs of a program")
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, smaller sweeps: minutes instead of half an hour"
    )
    parser.add_argument(
        "--only", choices=["updates", "sweeps", "scaling", "memory"], nargs="+", help="parts; default: all"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        import benchmark_gpu

        return benchmark_gpu.main(arguments.json, arguments.rounds)
    rounds = 3 if arguments.quick else arguments.rounds
    parts = {
        "updates": lambda: measure(rounds, arguments.many),
        "scaling": lambda: scaling(rounds, arguments.quick),
        "memory": lambda: memory(arguments.quick),
        "sweeps": lambda: ({}, sweeps(rounds, arguments.quick)),
    }
    found: dict[str, dict] = {
        "rates": {},
        "ratios": {},
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count()},
    }
    for name, part in parts.items():
        if name not in (arguments.only or parts):
            continue
        rates, ratios = part()
        for key, rate in rates.items():
            print(f"  {key:24s} {rate:9.1f}", flush=True)
        for key, value in ratios.items():
            print(f"  {key:24s} {value:9.2f}" + (f"   target {TARGETS[key]}" if key in TARGETS else ""), flush=True)
        found["rates"] |= rates
        found["ratios"] |= ratios
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
