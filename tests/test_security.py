"""No file that the lab reads can run code, and nothing of it can be reached from outside: by its source, and on a live sweep."""

import ast
import contextlib
from pathlib import Path

import pytest
from commands import TINY, end, start

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("rnn_lab", "experiments", "analysis") for path in (ROOT / room).rglob("*.py"))
# What makes code of data. `pickle.loads` of a composed config, in the launcher, is of bytes that it has made itself a moment before.
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "yaml.load",
    "yaml.unsafe_load",
}
FORBIDDEN |= {"yaml.full_load", "marshal.loads", "shelve.open", "pd.read_pickle", "joblib.load", "instantiate", "call"}
OWN_BYTES = {"launcher.py": {"pickle.loads"}}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_makes_code_of_data(path):
    for name, call in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in FORBIDDEN, f"line {call.lineno}: {name}"
        assert name != "pickle.loads" or name in OWN_BYTES.get(path.name, set()), f"line {call.lineno}: {name}"
        assert name != "torch.load" or given.get("weights_only") == "True", f"line {call.lineno}: {name}"
        assert "allow_pickle" not in given, f"line {call.lineno}: {name}"
        assert given.get("shell", "False") == "False", f"line {call.lineno}: {name}"
        assert "0.0.0.0" not in ast.unparse(call), f"line {call.lineno}: an address that everybody reaches"


def test_the_walk_sees_what_it_should():
    names = {name for path in SOURCES for name, _ in calls(path)}
    assert {"torch.load", "pickle.loads", "subprocess.run", "np.load"} <= names


def descendants(pid: int) -> set[int]:
    """A process and its children's children, as they are now."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, in the kernel's notation, at which these processes wait for connections."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            sockets |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.add(address.split(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_sweep_listens_on_the_loopback_interface_alone(tmp_path, engine):
    """With wandb's mirror and its core. Ray's own: test_ray."""
    sweep = start("-m", *TINY, "training.updates=3000", "seed=0,1", f"hydra.launcher.engine={engine}", cwd=tmp_path)
    seen: set[str] = set()
    while sweep.poll() is None:
        seen |= listening(descendants(sweep.pid))
        with contextlib.suppress(Exception):
            sweep.wait(0.2)
    assert end(sweep).status == 0
    assert seen <= LOOPBACK
