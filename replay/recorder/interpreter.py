"""The interpreter that runs a recorded program: this one, or another, which needs nothing of replay's.

Another one is asked what it is, and whether it can be recorded: by `tap`, the part of the recorder that it will run.
"""

import json
import platform
import shutil
import subprocess
import sys
from typing import NamedTuple

from replay.recorder import tap
from replay.support.errors import ReplayError

_ASK = """
import json, platform, sys
told = {"name": sys.implementation.name, "version": platform.python_version(), "obstacle": None}
if sys.implementation.name == "cpython" and sys.version_info[:2] >= tuple(json.loads(sys.argv[2])):
    import importlib.util
    spec = importlib.util.spec_from_file_location("_replay_tap", sys.argv[1])
    asked = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(asked)
    told["obstacle"] = asked.obstacle(*json.loads(sys.argv[3]))
else:
    told["obstacle"] = "only CPython %d.%d and newer can be recorded" % tuple(json.loads(sys.argv[2]))
print()
print(json.dumps(told))
"""
_SECONDS_TO_ANSWER = 30


class Interpreter(NamedTuple):
    """What runs the program."""

    path: str
    version: tuple[int, ...]
    """Major and minor."""
    description: str
    """Its name and version, as a trace's metadata have it."""


def this_interpreter(clean: bool, sites: bool) -> Interpreter:
    """The one that runs replay; an error if it cannot be recorded."""
    if reason := tap.obstacle(clean, sites):
        raise ReplayError(reason)
    return Interpreter(sys.executable, sys.version_info[:2], f"{sys.implementation.name} {platform.python_version()}")


def other_interpreter(name: str, clean: bool, sites: bool) -> Interpreter:
    """The one at that path, or of that name in PATH; an error if it cannot be recorded."""
    path = shutil.which(name)
    if path is None:
        raise ReplayError(f"--python: there is no program {name}")
    asked = json.dumps(tap.OLDEST), json.dumps([clean, sites])
    try:
        done = subprocess.run(
            [path, "-S", "-c", _ASK, tap.__file__, *asked], capture_output=True, text=True, timeout=_SECONDS_TO_ANSWER
        )
        told = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        raise ReplayError(f"--python: {path} does not answer as a Python interpreter does") from None
    if told["obstacle"]:
        raise ReplayError(f"--python: {path} is {told['name']} {told['version']}: {told['obstacle']}")
    major, minor = told["version"].split(".")[:2]
    return Interpreter(path, (int(major), int(minor)), f"{told['name']} {told['version']}")
