"""Trains one run, or with -m a sweep as one tensor program.

python experiments/train.py key=value ...
python experiments/train.py -m key=value,value ... | experiment=NAME
"""

import hydra
from omegaconf import DictConfig

from rnn_lab import app


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def train(config: DictConfig) -> float | None:
    return app.train_one(config)


if __name__ == "__main__":
    app.command_line(train)
