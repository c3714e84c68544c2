"""Config files from strangers: each is refused in one line that names what is wrong with it, and none runs code, writes elsewhere or
tells a secret.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from commands import ENVIRONMENT, SMALL, TRAIN, some, train
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rnn_lab import app
from rnn_lab.complaints import complaint
from rnn_lab.config import typed
from rnn_lab.config_files import foreign
from rnn_lab.jobs import check

CONF = Path(__file__).resolve().parents[1] / "conf"
GLOBAL = "# @package _global_\n"
RAN = "{_target_: os.mkdir, path: ran}"  # what it does if it is called

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {  # a file's content, and what the line says
    'task: !!python/object/apply:os.mkdir ["ran"]': "evil.yaml line 2: could not determine a constructor for the tag",
    "seed: !!python/name:os.system": "evil.yaml line 2: could not determine a constructor for the tag",
    f"seed: {'[' * 3000}{']' * 3000}": "evil.yaml: not readable as YAML (nested too deeply)",
    "".join(" " * depth + "a:\n" for depth in range(2000)): "evil.yaml: not readable as YAML (nested too deeply)",
    LAUGHS: "evil.yaml line 3: *a: write the value itself",
    "seed: &s [*s]": "evil.yaml line 2: *s: write the value itself",
    "seed: 1\nseed: 2": "evil.yaml line 3: found duplicate key seed",
    "seed: \0": "evil.yaml: not readable as YAML (unacceptable character",
    "sweep: \udce9": "evil.yaml: not readable as YAML ('utf-8' codec can't decode",  # a byte that is no UTF-8
    "seed: " + 6000 * "9": "evil.yaml: not readable as YAML (Exceeds the limit",
    "seed: {": "evil.yaml line 2: expected the node content",
    "task:\n\tlength: 10": "evil.yaml line 3: found character '\\t'",
    "- 1": "Cannot merge DictConfig with ListConfig",
    "seed: 2020-01-01": "seed=2020-01-01: must be a whole number",
    "1: 2": "1: no such key",
    "nosuch: 1": "nosuch: no such key",
    "defaults:\n  - /experiment: evil": "go round in a circle",
    "defaults:\n  - override /task: ../../secret": "task=../../secret: must be one of",
    "sweep: ../outside": "sweep=../outside: must be letters",
    "sweep: ${oc.env:HOME}": "sweep=?: must be letters",
    "tracker: {project: '${oc.env:WANDB_API_KEY}'}": "tracker.project=?: must be letters",
    "task: {_target_: os.mkdir}": "_target_: no such key",
    f"hydra: {{callbacks: {{evil: {RAN}}}}}": "hydra.callbacks.evil._target_=os.mkdir: ",
    f"hydra: {{launcher: {RAN}}}": "hydra.launcher._target_=os.mkdir: ",
    f"hydra: {{sweeper: {RAN}}}": "hydra.sweeper._target_=os.mkdir: ",
    "hydra: {callbacks: {evil: {_target_: '${seed}'}}}": "hydra.callbacks.evil._target_=",
    'hydra: {job_logging: {formatters: {simple: {"()": os.mkdir, path: ran}}}}': "hydra.job_logging.formatters.simple.()=os.mkdir: ",
    "hydra: {hydra_logging: {handlers: {console: {class: os.mkdir}}}}": "hydra.hydra_logging.handlers.console.class=os.mkdir: ",
    "hydra: {job_logging: {handlers: {console: {stream: 'ext://os.environ'}}}}": "stream=ext://os.environ: ",
    "hydra: {output_subdir: ../../../outside}": "hydra.output_subdir=../../../outside: must be .hydra",
    "hydra: {job: {env_copy: [PATH]}}": "hydra.job.env_copy=['PATH']: must be []",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A config folder of somebody else's, beside an empty current directory."""
    (tmp_path / "theirs" / "experiment").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    with chdir(tmp_path / "here"):
        yield tmp_path / "theirs"


def write(folder: Path, content: str) -> None:
    (folder / "experiment" / "evil.yaml").write_bytes((GLOBAL + content).encode(errors="surrogateescape"))


def refused(folder: Path) -> list[str]:
    """What train.py says of experiment=evil; the same steps without its process."""
    arguments = ["experiment=evil", f"hydra.searchpath=[file://{folder}]", *SMALL]
    app.register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", arguments, return_hydra_config=True)
            return check(composed, typed(composed), sweeping=False)
    except Exception as error:
        return complaint(error, arguments).splitlines()
    finally:
        GlobalHydra.instance().clear()


@pytest.mark.parametrize("content", some(REFUSED, 7))
def test_a_file_is_refused_in_one_line(folder, content):
    write(folder, content)
    [line] = refused(folder)
    assert REFUSED[content] in line
    assert os.listdir() == []


@pytest.mark.parametrize("content", some([case for case in REFUSED if "mkdir" in case], 3))
def test_the_command_line_refuses_it_too(folder, content):
    """Before Hydra has made an object of what the file names."""
    write(folder, content)
    ended = train("--config-dir", str(folder), "experiment=evil", *SMALL, cwd=Path.cwd())
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert REFUSED[content] in ended.err
    assert os.listdir() == []


def test_what_hydra_and_its_plugins_name_is_let_through(folder):
    write(folder, "hydra: {sweeper: {_target_: hydra_plugins.somebodys.Sweeper}}")
    assert refused(folder) == []
    assert (
        foreign(
            {"a": [{"_target_": "rnn_lab.app.Check"}], "class": "logging.StreamHandler", "s": "ext://sys.stdout"}, "h"
        )
        == {}
    )
    for name in ("os.system", "rnn_lab.app.Checker", "logging.handlers.SocketHandler", "", 3, {"a": 1}):
        assert len(foreign({"a": [{"_target_": name}]}, "hydra")) == 1


def test_no_path_of_a_file_leads_out_of_the_sweep(folder):
    """Hydra's own settings that the lab sets itself do not listen to a file."""
    write(
        folder,
        f"hydra: {{run: {{dir: {folder}/out}}, job_logging: {{handlers: {{file: {{filename: {folder}/log}}}}}}}}",
    )
    ended = train("--config-dir", str(folder), "experiment=evil", *SMALL, "tracker=none", cwd=Path.cwd())
    assert ended.status == 0, ended.err
    assert os.listdir() == ["runs"]
    assert sorted(os.listdir(folder)) == ["experiment"]
    logging.getLogger().handlers.clear()


def test_help_may_be_cut_short(tmp_path):
    """`train.py --help | head -1`: no traceback."""
    command = f"{sys.executable} {TRAIN} --help | head -1"
    ended = subprocess.run(
        command, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    assert ended.stdout.count("\n") == 1
