"""The interpreter that runs a recorded program: this one or another, in which replay need not be installed.

Another interpreter runs `tap`, the part of the recorder inside the program, to report its version and whether it can be
recorded.
"""

import json
import platform
import shutil
import subprocess
import sys
from typing import NamedTuple

from replay.recorder import tap
from replay.support.errors import ReplayError

_PROBE = """
import json, platform, sys
report = {"name": sys.implementation.name, "version": platform.python_version(), "obstacle": None}
if sys.implementation.name == "cpython" and sys.version_info[:2] >= tuple(json.loads(sys.argv[2])):
    import importlib.util
    spec = importlib.util.spec_from_file_location("_replay_tap", sys.argv[1])
    tap = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(tap)
    report["obstacle"] = tap.obstacle(*json.loads(sys.argv[3]))
else:
    report["obstacle"] = "only CPython %d.%d and newer can be recorded" % tuple(json.loads(sys.argv[2]))
print()
print(json.dumps(report))
"""
_TIMEOUT_SECONDS = 30


class Interpreter(NamedTuple):
    """The interpreter of the program."""

    path: str
    version: tuple[int, ...]
    """Major and minor."""
    description: str
    """Name and version, as in the metadata of a trace."""


def this_interpreter(clean: bool, sites: bool, types: bool) -> Interpreter:
    """Returns the interpreter that runs replay. Raises ReplayError if it cannot be recorded."""
    if reason := tap.obstacle(clean, sites, types):
        raise ReplayError(reason)
    return Interpreter(sys.executable, sys.version_info[:2], f"{sys.implementation.name} {platform.python_version()}")


def other_interpreter(name: str, clean: bool, sites: bool, types: bool) -> Interpreter:
    """Returns the interpreter at a path or with a name in PATH. Raises ReplayError if it cannot be recorded."""
    path = shutil.which(name)
    if path is None:
        raise ReplayError(f"--python: the program {name} does not exist")
    arguments = json.dumps(tap.OLDEST), json.dumps([clean, sites, types])
    try:
        done = subprocess.run(
            [path, "-S", "-c", _PROBE, tap.__file__, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
        report = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        raise ReplayError(f"--python: {path} is not a working Python interpreter") from None
    if report["obstacle"]:
        raise ReplayError(f"--python: {path} is {report['name']} {report['version']}: {report['obstacle']}")
    major, minor = report["version"].split(".")[:2]
    return Interpreter(path, (int(major), int(minor)), f"{report['name']} {report['version']}")
