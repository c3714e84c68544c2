"""At which gain g and input size does an untrained wide net lose its gradient or blow it up? analysis/phase_diagram.py answers.

python experiments/phase_diagram.py [tanh | sigmoid | relu | linear] [key=value ...]

The sweep of conf/experiment/phase_diagram.yaml, 30 gains by 20 input sizes around the activation's critical line, into
runs/phase_diagram_<activation>. Mean-field theory puts that line, for small inputs, at g = 1 for tanh and linear, sqrt(2) for relu, and
at about 10 for sigmoid.
"""

import sys

import hydra
from omegaconf import DictConfig

from rnn_lab import app

GAINS = dict.fromkeys(("tanh", "relu", "linear"), "range(0.1,3.05,0.1)") | {"sigmoid": "range(1,31)"}


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def train(config: DictConfig) -> float | None:
    return app.train_one(config)


def overrides(arguments: list[str]) -> list[str]:
    """Of Hydra, for these arguments. Exits with status 2 where the first is no activation, override or option."""
    named = bool(arguments) and "=" not in arguments[0] and not arguments[0].startswith("-")
    activation, *rest = arguments if named else ["tanh", *arguments]
    if activation not in GAINS:
        print(f"{activation}: must be one of {', '.join(GAINS)}, or key=value", file=sys.stderr)
        sys.exit(2)
    chosen = [f"model.activation={activation}", f"init.scale={GAINS[activation]}", f"sweep=phase_diagram_{activation}"]
    return ["experiment=phase_diagram", *chosen, *rest]


if __name__ == "__main__":
    sys.argv[1:] = overrides(sys.argv[1:])
    app.command_line(train)
