"""What Hydra does once a job, several times as fast and not a byte different: its copies of configs, and `.hydra/`.

Hydra copies a config of 250 nodes five times a job, and OmegaConf calls a constructor for each; PyYAML writes 300 lines, all but a dozen of
which were those of the job before. Nothing here is public: tests/test_quicker.py holds it to what OmegaConf itself does.
"""

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from hydra.core import utils
from omegaconf import DictConfig, ListConfig, Node, OmegaConf, ValueNode
from omegaconf._utils import get_omega_conf_dumper

_dumped: dict[tuple[str, int], str] = {}


def install() -> None:
    """From now on Hydra is as fast in this process."""
    DictConfig.__deepcopy__ = ListConfig.__deepcopy__ = copied  # pyright: ignore[reportAttributeAccessIssue]
    utils._save_config = _save


def copied(node: Any, memo: dict[int, Any]) -> Any:
    """As a config's own `__deepcopy__`: the copy keeps the parent, and what can change is its own."""
    made = object.__new__(type(node))
    metadata = object.__new__(type(node._metadata))
    vars(made).update(vars(node), _metadata=metadata, _flags_cache=None)
    vars(metadata).update(vars(node._metadata), flags=copy.copy(node._metadata.flags))
    cached = metadata.resolver_cache
    metadata.resolver_cache = copy.deepcopy(cached, memo) if cached else defaultdict(dict)
    content = None if isinstance(node, ValueNode) else vars(node)["_content"]
    if isinstance(content, dict):
        vars(made)["_content"] = {key: _child(value, made, memo) for key, value in content.items()}
    elif isinstance(content, list):
        vars(made)["_content"] = [_child(value, made, memo) for value in content]
    return made


def _child(node: Node, parent: Node, memo: dict[int, Any]) -> Node:
    made = copied(node, memo) if isinstance(node, DictConfig | ListConfig | ValueNode) else copy.deepcopy(node, memo)
    vars(made)["_parent"] = parent
    return made


def _save(config: Any, name: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / name, "w", encoding="utf-8") as file:
        file.write(to_yaml(config))


def to_yaml(config: Any) -> str:
    """What `OmegaConf.to_yaml` returns."""
    return _lines(OmegaConf.to_container(config, resolve=False, enum_to_str=True), 0)


def _lines(node: Any, depth: int) -> str:
    """Those of a node inside so many mappings, entry by entry: what differs from job to job are a few."""
    if not node or not isinstance(node, dict | list):
        return _dump(node, depth)
    if isinstance(node, list):
        return "".join(_dump([item], depth) for item in node)
    return "".join(_entry(key, value, depth) for key, value in node.items())


def _entry(key: Any, value: Any, depth: int) -> str:
    if value and isinstance(value, dict | list):
        head, _, rest = _dump({key: {0: 0}}, depth).partition(":\n")
        if rest == "  " * (depth + 1) + "0: 0\n":  # else the key needs lines of its own
            return f"{head}:\n{_lines(value, depth + 1)}"
    return _dump({key: value}, depth)


def _dump(node: Any, depth: int) -> str:
    """The lines of a node inside so many mappings, as PyYAML writes them."""
    key = repr(node), depth
    if key not in _dumped:
        for _ in range(depth):
            node = {0: node}
        text = yaml.dump(
            node, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper()
        )
        _dumped[key] = text.split("\n", depth)[depth]
    return _dumped[key]
