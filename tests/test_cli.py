"""experiments/train.py at the command line: mistakes are answered in one line, help and completion at once."""

import resource

import pytest
from commands import SMALL, TINY, TRAIN, end, start, train

from rnn_lab import results

TASKS = ["addition", "characters", "copying", "memorization", "memorization_20bit", "multiplication", "music"]
TASKS += ["random_permutation", "temporal_order", "temporal_order_3bit"]
KEY, SECRET = "planted0" * 5, "hunter2-" * 3

MISTAKES = {
    "clip.treshold=2": "clip.treshold: no such key; did you mean clip.threshold?",
    "+nonsense=2": "nonsense: no such key",
    "task=nope": "task=nope: must be one of " + ", ".join(TASKS),
    "task.length=3": "task.length=3: temporal_order needs at least 10",
    "task.ahead=0": "task.ahead=0: must be a whole number >= 1",
    "regularizer.decay=epoch": "regularizer.decay=epoch: temporal_order has no epochs; use task=characters or music",
    "training.batch_size=0": "training.batch_size=0: must be a whole number >= 1",
    "model=rnn": "model=rnn: must be one of elman, gru, leaky, lstm",
    "model.leak=0": "model.leak=0.0: must be a number > 0 and <= 1",
    "init.scale=-1": "init.scale=-1.0: must be a finite number >= 0",
    "optimizer.lr=nan": "optimizer.lr=nan: must be a finite number >= 0",
    "training.updates=many": "training.updates=many: must be a whole number >= 0",
    "preset=pascanu": "preset=pascanu: must be one of none, pascanu_basic_tanh, pascanu_sigmoid, pascanu_smart_tanh",
    "clip.threshold=0": "clip.threshold=0.0: must be a finite number > 0",
    "sweep=a/b": "sweep=a/b: must be letters, digits, . _ - (not first a dot), at most 100",
    "sweep=..": "sweep=..: must be letters, digits, . _ - (not first a dot), at most 100",
    "hydra.launcher.engine=warp": "hydra.launcher.engine=warp: must be one of serial, processes, slurm, ray",
    "hydra.launcher.workers=0": "hydra.launcher.workers=0: must be null or a whole number >= 1",
    "hydra.launcher.slurm.minutes=1.5": "hydra.launcher.slurm.minutes=1.5: must be a whole number >= 1",
    "hydra.launcher.slurm.memory=-2": "hydra.launcher.slurm.memory=-2: must be a finite number > 0",
    "hydra.launcher.slurm.partition='a b'": "hydra.launcher.slurm.partition=a b: must be null or a name as sbatch takes it",
    "hydra.launcher.ray.address=there": "hydra.launcher.ray.address=there: must be null or auto or host:port",
    "hydra.launcher.slurm.tasks=3": "hydra.launcher.slurm.tasks: no such key",
    "+hydra.launcher.slurm.tasks=3": "hydra.launcher.slurm.tasks: no such key",
    "hydra.launcher.max_runs=0": "hydra.launcher.max_runs=0: must be null or a whole number >= 1",
    "hydra.launcher.checkpoint_seconds=-1": "hydra.launcher.checkpoint_seconds=-1: must be a finite number >= 0",
    "task=[addition,multiplication]": "task=[addition,multiplication]: takes one name; several make a sweep, with -m and without brackets",
    "hydra.launcher.dry_run=maybe": "hydra.launcher.dry_run=maybe: must be true or false",
}


@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["single", "multirun"])
@pytest.mark.parametrize(("mistake", "line"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(tmp_path, mistake, line, mode):
    ended = train(*mode, mistake, cwd=tmp_path)
    assert (ended.status, ended.out, ended.err) == (2, "", line + "\n")
    assert list(tmp_path.iterdir()) == []


MORE_MISTAKES = {  # a command, and what each of its lines says
    "-m task.length=100,-3": ["task.length=-3: must be a whole number >= 1"],
    "-m task.length=100,3,4 clip=none,clamp seed=0,x optimizer.lr=0.1,nan": [
        "task.length=3: temporal_order needs at least 10",
        "task.length=4: temporal_order needs at least 10",
        "clip=clamp: must be one of agc, autoclip, none, norm, value",
        "seed=x: must be a whole number from 0 to 2^63 - 1",
        "optimizer.lr=nan: must be a finite number >= 0",
    ],
    "task=characters task.path=nowhere.txt": ["task.path=nowhere.txt: No such file or directory"],
    "-m task=characters task.path=.": ["task.path=.: Is a directory"],
    "task=characters eval.lengths=[300]": ["eval.lengths=[300]: not with task=characters"],
    "task=characters training.batch_size=9999": ["task.path=null: too short for task.length=200, task.ahead=1"],
    "-m sweep=a,b": ["sweep=a,b: a sweep has one name"],
    "-m init.scale=interval(0,1)": ["init.scale=interval(0,1): give the values"],
    "-m seed=range(1,0)": ["seed=range(1,0): "],
    "-m seed=glob(*)": ["seed=glob(*): "],
    "-m hydra.sweep.dir=elsewhere": ["choose it by sweep=NAME"],
    "-m hydra.sweep.subdir=elsewhere": ["choose it by sweep=NAME"],
    "hydra.run.dir=../elsewhere": ["choose it by sweep=NAME"],
    "hydra.job.chdir=true": ["hydra.job.chdir=True: must be false"],
    "hydra.job.env_copy=[PATH]": ["hydra.job.env_copy=['PATH']: must be []"],
    "hydra.output_subdir=../x": ["hydra.output_subdir=../x: must be .hydra"],
    "model.hidden=1000000 task.length=1000000": ["GB or more, and this machine has"],
    "training.updates=99999999999999999999": ["training.updates=99999999999999999999: must be less than 2^63"],
    "init.scale=1,2": ["init.scale=1,2: several values make a sweep; add -m"],
    "task=null": ["task=null: a group takes the name of one of its options"],
    "init.std=0.1 init.scale=2": ["init.std=0.1 and init.scale=2.0: give one of the two"],
    "preset=pascanu_sigmoid model.activation=tanh": [
        "preset=pascanu_sigmoid sets model.activation: give one of the two"
    ],
    "experiment=vanishing_exploding task.length=3": ["task.length=3: temporal_order needs at least 10"],
    "--config-name nope": ["'nope'"],
    "seed": ["'seed'"],
}


@pytest.mark.parametrize("command", MORE_MISTAKES)
def test_all_mistakes_of_a_command_are_told_at_once(tmp_path, command):
    ended = train(*command.split(), cwd=tmp_path)
    said, lines = ended.err.splitlines(), MORE_MISTAKES[command]
    assert (ended.status, ended.out) == (2, "")
    assert len(said) == len(lines)
    for line in lines:
        assert line in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_command_from_the_start_answers_as_its_fork_does(tmp_path):
    """The other tests fork from a warm process; this one is `python experiments/train.py` itself."""
    assert end(start("-m", "clip=norm,x", "seed=y", cwd=tmp_path)) == train("-m", "clip=norm,x", "seed=y", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_options_that_ignore_a_key_may_be_swept_beside_it(tmp_path):
    ended = train("-m", *SMALL, "clip=none,norm", "clip.threshold=1", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    runs = results.load(tmp_path / "runs" / "default").runs
    assert sorted(runs["clip.name"]) == ["none", "norm"]
    assert set(runs["status"]) == {"completed"}


def test_a_run_without_updates_probes_the_untrained_net(tmp_path):
    ended = train(*SMALL, "training.updates=0", cwd=tmp_path)
    assert (ended.status, ended.err) == (0, "")
    loaded = results.load(tmp_path / "runs" / "default")
    assert loaded.runs["status"].item() == "completed"
    assert list(loaded.steps["step"]) == [0]


# -------------------- help and completion


def test_help_is_worth_reading_and_fast(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    status, out, err = end(start("--help", cwd=tmp_path))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3  # seconds of computing; usually one
    assert (status, err) == (0, "")
    for worth in (
        "-m key=value,value",
        "experiment=",
        "clip: agc, autoclip, none, norm, value",
        "threshold: 1.0",
        "init.scale",
        "runs/",
    ):
        assert worth in out
    written = [
        line for line in out.splitlines() if not line.startswith(("experiment: ", "task: "))
    ]  # Hydra lists the files there are
    assert max(map(len, written)) <= 140
    assert list(tmp_path.iterdir()) == []


def typing(line: str) -> dict[str, str]:
    """What a shell says when it asks for completions."""
    return {"COMP_LINE": line, "COMP_POINT": str(len(line))}


@pytest.mark.parametrize("how", ["--help", "-sc query=bash", "--cfg job"])
def test_no_torch_where_nothing_is_trained(tmp_path, how):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'wandb', 'pandas', 'matplotlib'}\n"
        "atexit.register(lambda: sys.stderr.write(f'heavy: {sorted(heavy & set(sys.modules))}'))\n"
        f"sys.argv[0] = {str(TRAIN)!r}\n"
        f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n"
    )
    status, out, err = end(start(*how.split(), cwd=tmp_path, script=probe, environment=typing("train.py cl")))
    assert (status, err) == (0, "heavy: []")
    assert out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("model.act", {"model.activation="}),
        ("clip=n", {"clip=none", "clip=norm"}),
        ("preset=pascanu_s", {"preset=pascanu_sigmoid", "preset=pascanu_smart_tanh"}),
        ("experiment=van", {"experiment=vanishing_exploding"}),
        ("-m seed=1 training.up", {"training.updates="}),
    ],
)
def test_the_shell_completes_keys_and_options(tmp_path, typed, offered):
    ended = end(start("-sc", "query=bash", cwd=tmp_path, environment=typing(f"python experiments/train.py {typed}")))
    assert ended.status == 0
    assert set(ended.out.split()) == offered
    assert list(tmp_path.iterdir()) == []


def test_completion_can_be_switched_on(tmp_path):
    ended = end(start("-sc", "install=bash", cwd=tmp_path))
    assert ended.status == 0
    assert "complete " in ended.out


# -------------------- secrets


def test_no_secret_reaches_disk_or_terminal(tmp_path):
    """A sweep with wandb, an API key and another secret in the environment; everything written anywhere near is searched."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"WANDB_API_KEY": KEY, "DATABASE_SECRET": SECRET, "HOME": str(home)}
    ended = end(start("-m", *TINY, "seed=0,1", cwd=tmp_path, environment=environment))
    assert ended.status == 0, ended.err
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sum(p.suffix == ".wandb" for p in files) == 2
    assert {p.parent.parent.parent.name for p in files if p.suffix == ".wandb"} == {"default"}
    for secret in (KEY, SECRET):
        assert secret not in ended.out + ended.err
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
        assert [p for p in files if secret in str(p)] == []
