"""Finds the machine code of hooks: in this package, else from `replay.recorder.hooks`, which imports llvmlite."""

import json
from base64 import b64decode
from functools import cache

from replay.jit import shipped
from replay.recorder.hook_kinds import Code, Extras

HOOKS = "replay.recorder.hooks"
"""The module, and its entry in the index of the shipped code."""
HOOKS_FILE = "hooks.json"


def find_hooks(counter: bool, extras: Extras | None = None) -> Code:
    """Returns the code of `replay.recorder.hooks.make_hooks` for these arguments."""
    if found := _shipped_hooks().get(key_of(counter, extras)):
        return Code(b64decode(found["text"]), found["offsets"])
    from replay.recorder.hooks import make_hooks

    return make_hooks(counter, extras)


def key_of(counter: bool, extras: Extras | None) -> str:
    """Returns the name of these hooks among the shipped ones."""
    return repr((counter, extras and tuple(extras)))


@cache
def _shipped_hooks() -> dict[str, dict]:
    if not shipped.is_current(HOOKS):
        return {}
    try:
        found: dict[str, dict] = json.loads((shipped.FOLDER / HOOKS_FILE).read_bytes())
        return found
    except (OSError, ValueError):
        return {}
