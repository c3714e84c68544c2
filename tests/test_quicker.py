"""Copies and YAML of configs are those of OmegaConf itself, whatever is in them."""

import copy
import random
from enum import Enum
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from rnn_lab import quicker
from rnn_lab.config import Config

THEIRS = DictConfig.__deepcopy__, ListConfig.__deepcopy__
# What YAML quotes, folds, escapes, or would read as something else.
WORDS = ["null", "yes", "on", "1", "1e3", "a b", "x: y", "- a", "#c", "é", "😀", "", "'", '"', "a\nb", "k" * 200]
WORDS += ["~", "=", "0x1", "1_0", "1:30", "{a: b}", "[1]", "\t", "\x85", "\u2028", " lead", "trail ", "%", "@x"]
WORDS += ["`", "!t", "&a", "*b", "|", ">", "? a", "a" * 90 + " " + "b" * 90]
NUMBERS = [0, 1, -0.0, 0.0, 1.0, 1e300, float("nan"), float("inf"), True, False, None]


class Colour(Enum):
    RED = 1


def anything(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if depth and (depth > 4 or kind < 0.4):
        return draw.choice([*NUMBERS, *WORDS, Colour.RED, b"bytes"])
    if kind < 0.55:
        return [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = [*WORDS, "a", "b", "c", 3, 1.5, True, Colour.RED]
    return {draw.choice(keys): anything(draw, depth + 1) for _ in range(draw.randrange(5))}


@pytest.mark.parametrize("seed", range(4))
def test_yaml_is_that_of_omegaconf(seed):
    draw = random.Random(seed)
    for _ in range(200):
        config = OmegaConf.create(anything(draw))
        assert quicker.to_yaml(config) == OmegaConf.to_yaml(config)
    typed = OmegaConf.structured(Config(seed=seed))
    assert quicker.to_yaml(typed) == OmegaConf.to_yaml(typed)


def everything(node: Any) -> Any:
    """All that a node is, but whose child it is."""
    metadata = vars(node._metadata) | {"resolver_cache": dict(node._metadata.resolver_cache)}
    content = vars(node).get("_content", vars(node).get("_val"))
    if isinstance(content, dict):
        content = {key: everything(child) for key, child in content.items()}
    elif isinstance(content, list):
        content = [everything(child) for child in content]
    return type(node), metadata, content


def descendants(node: Any) -> list[Any]:
    content = vars(node).get("_content")
    children = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    return [node, *(below for child in children for below in descendants(child))]


@pytest.fixture
def whole() -> DictConfig:
    """A typed config with what a job's has: interpolations, flags, missing values, lists, a cache of what resolvers said."""
    config: Any = OmegaConf.structured(Config())
    OmegaConf.register_new_resolver("told", lambda: [1], use_cache=True, replace=True)
    OmegaConf.set_struct(config, False)
    config.more = OmegaConf.create(
        {"a": "${seed}", "b": "${told:}", "c": "???", "d": [1, {"e": None}], "none": None, "rgb": Colour.RED}
    )
    config.clip.threshold, config.task.length_range = "${optimizer.lr}", [3, 4]
    OmegaConf.set_readonly(config.more, True)
    assert config.more.b == [1]
    assert config.more.d[1].e is None
    return config


def test_a_copy_is_that_of_omegaconf(whole):
    theirs, ours = THEIRS[0](whole, {}), quicker.copied(whole, {})
    assert everything(ours) == everything(theirs) == everything(whole)
    assert OmegaConf.to_container(ours, resolve=False) == OmegaConf.to_container(whole, resolve=False)
    assert ours.clip.threshold == whole.optimizer.lr
    assert OmegaConf.is_readonly(ours.more)


def test_a_copy_shares_nothing_that_can_change(whole):
    ours = quicker.copied(whole, {})
    pairs = list(zip(descendants(whole), descendants(ours), strict=True))
    for a, b in pairs:
        assert a is not b
        assert a._metadata is not b._metadata
        assert a._metadata.flags is not b._metadata.flags
        assert a._metadata.resolver_cache is not b._metadata.resolver_cache
        assert vars(a)["_flags_cache"] is None or vars(a)["_flags_cache"] is not vars(b)["_flags_cache"]
    parents = {id(a): b for a, b in pairs}
    assert all(b._get_parent() is parents.get(id(a._get_parent())) for a, b in pairs[1:])
    ours.seed, ours.task.length_range = 7, [5, 6]
    OmegaConf.set_readonly(ours, True)
    assert (whole.seed, whole.task.length_range) == (0, [3, 4])
    whole.seed = 3  # not read-only
    assert (ours.more.a, whole.more.a) == (7, 3)


def test_a_copied_child_keeps_its_parent(whole):
    """As theirs does: what it refers to outside is still found."""
    assert quicker.copied(whole.clip, {}).threshold == THEIRS[0](whole.clip, {}).threshold == whole.optimizer.lr
    assert quicker.copied(whole.task.length_range, {})._get_parent() is whole.task


def test_hydra_copies_so(whole, monkeypatch):
    monkeypatch.setattr(DictConfig, "__deepcopy__", THEIRS[0])
    monkeypatch.setattr(ListConfig, "__deepcopy__", THEIRS[1])
    quicker.install()
    assert everything(copy.deepcopy(whole)) == everything(whole)
    assert DictConfig.__deepcopy__ is ListConfig.__deepcopy__ is quicker.copied
