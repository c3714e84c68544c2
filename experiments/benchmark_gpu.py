"""How fast is an update on a GPU? `python experiments/benchmark.py --device cuda [--json FILE] [--rounds 7]`.

The contenders of benchmark.py on one GPU, with the same work and the same check of losses; programs of 512 runs where it has 64. JAX
multiplies in float32; its default would be tf32. Everybody's data is drawn a block ahead.

    single_vs_loop, many_vs_loop      all series of all time steps at every update, against RNNCell in a loop with retain_grad
    single_vs_rnn, many_vs_rnn        no rows, against nn.RNN (cuDNN) + autograd, one run after another
    many_vs_jax                       a program with its rows at every update, against jit(vmap(grad(scan))) with gradients of all states
    many_unprobed_vs_jax              the same without rows
    roofline                          FLOPs of the three products over the peak of sgemm, a program without rows, data included
    reference_vs_many                 a program of the reference as it is, without graph and fused loops, over that; less is better
    probe_cost                        time with a row every 10 updates over time without
    lstm_vs_torch, gru_vs_torch       a program without rows against nn.LSTM, nn.GRU (cuDNN) + autograd, one run after another
    figure_7_seconds[_processes]      the grid of Figure 7 (180 runs, T = 10, 20, 50, 100), a thousand updates, in one process or eight
"""

import json
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmark import FLOPS, Contender, check_losses, command_line, elsewhere, here, jax_program, lab, torch_loop

MANY = 512
GRID = (
    *(
        "preset=pascanu_sigmoid,pascanu_basic_tanh,pascanu_smart_tanh",
        "method=msgd,msgd_c,msgd_cr",
        "task.length=10,20,50,100",
    ),
    *("seed=range(5)", "tracker=none", "training.log_every=1000", "training.device=cuda"),
)


def ours(runs: int, updates: int, log_every: int, kernel: str = "auto", **sizes):
    return here(lab(runs, updates, log_every, kernel, 1, spectrum=False, device="cuda", **sizes))


def contenders() -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "loop": (1, 20, "elman", here(torch_loop(20, "RNNCell", device="cuda"))),
        "rnn": (1, 50, "elman", here(torch_loop(50, "RNN", device="cuda"))),
        "single": (1, 50, "ours", ours(1, 50, 1)),
        "single_unprobed": (1, 100, "ours", ours(1, 100, 100)),
        "many": (MANY, 20, "ours", ours(MANY, 20, 1)),
        "many_10": (MANY, 50, "ours", ours(MANY, 50, 10)),
        "many_unprobed": (MANY, 50, "ours", ours(MANY, 50, 50)),
        "reference": (MANY, 10, "ours", ours(MANY, 10, 10, "reference")),
    }
    for model in ("lstm", "gru"):
        found[f"{model}_torch"] = (1, 20, model, here(torch_loop(20, model.upper(), model, "cuda")))
        found[model] = (MANY, 10, f"our {model}", ours(MANY, 10, 10, model=model))
    if find_spec("jax"):
        os.environ |= {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        cores = sorted(os.sched_getaffinity(0))
        found["jax"] = (MANY, 20, "elman", elsewhere(cores, partial(jax_program, MANY, 20, "cuda")))
    return found


def sgemm_peak() -> float:
    """FLOPs a second of the GPU's best large product in float32."""
    import torch

    a, b, best = torch.rand(8192, 8192, device="cuda"), torch.rand(8192, 8192, device="cuda"), 0.0
    for _ in range(5):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        stop.record()
        torch.cuda.synchronize()
        best = max(best, 2 * 8192**3 / (start.elapsed_time(stop) / 1000))
    return best


def measure(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Rates (runs x updates a second) and ratios of updates."""
    entries, rates = contenders(), dict[str, list[float]]()
    check_losses(entries)
    for _ in range(rounds):
        for name, (runs, updates, _, turn) in entries.items():
            rates.setdefault(name, []).append(runs * updates / turn()[0])
        rates.setdefault("sgemm_peak_gflops", []).append(sgemm_peak() / 1e9)

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(rates[a], rates[b], strict=True))

    pairs = {
        "single_vs_loop": ("single", "loop"),
        "single_vs_rnn": ("single_unprobed", "rnn"),
        "many_vs_loop": ("many", "loop"),
        "many_vs_rnn": ("many_unprobed", "rnn"),
        "reference_vs_many": ("reference", "many_unprobed"),
        "probe_cost": ("many_unprobed", "many_10"),
        "lstm_vs_torch": ("lstm", "lstm_torch"),
        "gru_vs_torch": ("gru", "gru_torch"),
        **(
            {"many_vs_jax": ("many", "jax"), "many_unprobed_vs_jax": ("many_unprobed", "jax")} if "jax" in rates else {}
        ),
    }
    ratios = {name: ratio(*pair) for name, pair in pairs.items()}
    ratios["roofline"] = ratio("many_unprobed", "sgemm_peak_gflops") * FLOPS / 1e9
    return {name: median(values) for name, values in rates.items()}, ratios


def scaling(rounds: int) -> dict[str, float]:
    """Milliseconds of an update against R and T, without rows."""
    sizes = {f"R={R}": (R, {}) for R in (1, 8, 64, 512, 2048)}
    sizes |= {f"T={length}": (MANY, {"length": length}) for length in (10, 30, 300, 1000)}
    found = {}
    for name, (runs, more) in sizes.items():
        turn = ours(runs, 32, 32, **more)
        found[f"ms {name}"] = median([1000 * turn()[0] / 32 for _ in range(rounds + 2)][2:])
    return found


def figure_7() -> dict[str, float]:
    """Seconds of a thousand updates of the whole grid through the command line, without what no update takes."""
    found = {}
    for name, more in (("", ()), ("_processes", ("hydra.launcher.engine=processes", "hydra.launcher.workers=8"))):
        seconds = [command_line(*GRID, *more, f"training.updates={updates}") for updates in (0, 1000)]
        found[f"figure_7_seconds{name}"] = seconds[1] - seconds[0]
    return found


def main(file: str | None, rounds: int) -> None:
    import torch

    found: dict[str, dict] = {"machine": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}}
    found["rates"], found["ratios"] = measure(rounds)
    found["rates"] |= scaling(rounds) | figure_7()
    for part in ("rates", "ratios"):
        for key, value in found[part].items():
            print(f"  {key:28s} {value:12.2f}", flush=True)
    if file:
        Path(file).write_text(json.dumps(found, indent=2) + "\n")
