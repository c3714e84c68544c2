"""Config files may come from anybody: one that is wrong is refused in one line, and none can run code or read the environment.

Hydra makes objects of what its own node names, before any of our checks sees it: launcher, sweeper, callbacks, log handlers. Only names of
installed plugins and of the lab itself are let through. `guard` puts both checks where Hydra reads and composes.
"""

import re
from pathlib import Path
from typing import Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from rnn_lab.config import ConfigError

# Keys whose value is called: Hydra's, those of logging.config.dictConfig, and the Optuna sweeper's.
CALLS = ("_target_", "()", "class", "custom_search_space")
CALLED = re.compile(
    r"rnn_lab\.app\.Check|hydra_plugins\.[\w.]+|hydra\._internal\.core_plugins\.[\w.]+|optuna\.samplers\.\w+"
    r"|logging\.(Stream|File|Null)Handler|colorlog\.ColoredFormatter"
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")  # dictConfig imports whatever else stands behind ext://
REASON = "a config file names no code but that of installed Hydra plugins"


class Files(FileConfigSource):
    """Reads config files; whatever YAML, a codec or the stack says of one is a ConfigError that names it."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            if file.is_file() and re.search(r"(^|[\s\[{,])\*\w", file.read_text(encoding="utf-8")):
                _refuse_aliases(file)
            return super().load_config(config_path)
        except yaml.MarkedYAMLError as error:
            line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{file}{line}: {error.problem}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            said = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
            raise ConfigError(f"{file}: not readable as YAML ({said[:200]})") from error


def _refuse_aliases(file: Path) -> None:
    """A few lines of aliases of aliases make a billion entries."""
    for event in yaml.parse(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise ConfigError(f"{file} line {line}: *{event.anchor}: write the value itself, aliases are not read")


class Loader(ConfigLoaderImpl):
    """Composes configs, and refuses files whose `hydra` names foreign code; what is typed on the command line is the user's own."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        try:
            composed = super().load_configuration(config_name, overrides, *args, **kwargs)
        except RecursionError as error:
            raise ConfigError("the defaults lists of the config files go round in a circle") from error
        typed = {override.lstrip("+").partition("=")[0] for override in overrides}
        found = foreign(OmegaConf.to_container(composed.hydra), "hydra")
        if refused := [line for name, line in found.items() if name not in typed]:
            raise ConfigError("\n".join(refused))
        return composed


def foreign(node: Any, prefix: str) -> dict[str, str]:
    """What in a plain tree would call or import something else than CALLED and STREAMS: by its key, a line that says so."""
    found = {}
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        name = f"{prefix}.{key}"
        called = key in CALLS and value is not None and not (isinstance(value, str) and CALLED.fullmatch(value))
        if called or (isinstance(value, str) and value.startswith("ext://") and value not in STREAMS):
            found[name] = f"{name}={value if isinstance(value, str) else type(value).__name__}: {REASON}"
        found |= foreign(value, name)
    return found


def guard() -> None:
    """Puts the checks in Hydra's way, in this process."""
    Plugins.instance()  # registers Hydra's own source
    SourcesRegistry.instance().types["file"] = Files
    hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[misc]
    OmegaConf.clear_resolver("oc.env")  # a key of an API would end up in run.json
