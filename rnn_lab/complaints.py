"""Errors of Hydra and OmegaConf, which take several lines and name no remedy, as one line each: key, value, what is allowed."""

import difflib
import errno
import re
import sys
import traceback
from pathlib import Path

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from rnn_lab.config import GROUPS, Config, ConfigError, leaves, shown
from rnn_lab.recording.store import Locked

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # raised as data are written out, often without a name
HINTS = (  # pattern over the message, the line that answers it
    (r"(?s)Ambiguous value for argument '(?P<o>.*)'\s+1\.", "{o}: several values make a sweep; add -m"),
    (r"Could not find '(?P<group>[^'/]*)/(?P<option>[^']*)'", "{group}={option}: must be one of {options}"),
    (r"Could not override '(?P<key>[^']*)'", "{key}: no such key{close}"),
    (r"Key '(?P<key>[^']*)' (is )?not in", "{key}: no such key{close}"),
)


def complaint(error: BaseException, overrides: list[str] | None = None) -> str:
    """What to tell the user, a line for each problem; a traceback for what is nobody's input but a bug of ours."""
    for ours in (error, error.__cause__):  # Hydra may have wrapped it
        if isinstance(ours, ConfigError | Locked):
            return str(ours)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
        return f"{error.filename or 'the disk'}: {error.strerror}"
    message = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    known = {leaf.key: leaf for leaf in leaves(Config())}
    groups = GROUPS | {"experiment"}
    arguments = overrides if overrides is not None else sys.argv[1:]
    if "Config group override must be" in message or (isinstance(error, TypeError) and _in_hydra(error)):
        given = [a.partition("=") for a in arguments]  # task=null, task=3, task=[null]
        names = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_]\w*", re.IGNORECASE)
        culprits = [
            f"{k}={v and shown(v)}" for k, _, v in given if k.split("@")[0] in groups and not names.fullmatch(v)
        ]
        if culprits:
            return f"{' '.join(culprits)}: a group takes the name of one of its options"
    refused = isinstance(error, ValueError) and _in_hydra(error)
    if not isinstance(error, HydraException | OmegaConfBaseException) and not refused:
        return "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, OverrideParseException):
        return f"{error.override!r}: expected key=value; a value that is more than a word or a number wants quotes of its own"
    full_key = re.search(r"full_key: ([^\s\[]+)", message)
    if full_key and full_key[1] in known:
        key = full_key[1]
        stood = re.search(r"Value '([^'\n]*)'", message)  # in a file, if not on the command line
        given = [
            stood[1] if stood else "?",
            *(a.split("=", 1)[1] for a in arguments if a.lstrip("+").split("=", 1)[0] == key and "=" in a),
        ]
        return f"{key}={given[-1] and shown(given[-1])}: must be {known[key].rule.words}"
    for pattern, answer in HINTS:
        if match := re.search(pattern, message):
            options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
            close = difflib.get_close_matches(match.groupdict().get("key", ""), [*groups, *known], n=1, cutoff=0.5)
            return answer.format(
                **{name: shown(value) for name, value in match.groupdict().items()},
                options=", ".join(options),
                close=f"; did you mean {close[0]}?" if close else "",
            )
    return shown(" ".join(message.split()))


def _in_hydra(error: BaseException) -> bool:
    """Whether Hydra itself raised a plain error: that, too, is about the command line."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(hydra.__file__).parent in Path(frames[-1].filename).parents
