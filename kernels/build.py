"""Makes the machine code that wheels for Linux on x86-64 carry: python kernels/build.py

First, the commands of `scenarios` run with all kernels as plain Python, and the types of each call are noted. Then each
entry is compiled for each combination of types and for each class of processors, in as many processes as there are
processors, and the objects are linked by the C compiler. `replay.jit.shipped` describes the result.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scenarios import commands

from replay.jit import compiling, kernel_cache, shipped

PACKAGE = Path(shipped.__file__).parents[1]


class Call(NamedTuple):
    """An entry and the types of its arguments."""

    module: str
    function: str
    signature: str
    types: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"{self.module}.{self.function}"

    @property
    def symbol(self) -> str:
        return shipped.symbol_of(self.name, self.signature)


def note_calls() -> list[Call]:
    """Runs the commands, and returns each combination of types with which they call an entry."""
    from replay.__main__ import app
    from replay.jit._numba.shipping import type_of

    noted: dict[tuple[str, str, str], Call] = {}

    def note(entry: Any, *arguments: Any) -> Any:
        function = entry.py_func
        key = (function.__module__, function.__qualname__, shipped.signature_of(arguments))
        if key not in noted:
            noted[key] = Call(*key, tuple(map(type_of, arguments)))
        return function(*arguments)

    compiling.Entry.__call__ = note  # type: ignore[method-assign]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, chdir(folder), np.errstate(all="ignore"):
        for command in commands():
            run(app, command)
    return sorted(noted.values(), key=lambda call: call[:3])


def run(app: Any, command: list[str]) -> None:
    """Runs a command of replay in this process. Raises SystemExit with its output if it fails."""
    before, output = time.monotonic(), StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            status = app(command, standalone_mode=False)
    except SystemExit as end:
        status = end.code
    except Exception as error:
        raise SystemExit(f"{output.getvalue()}replay {' '.join(command)}: {error}") from error
    if status:
        raise SystemExit(f"{output.getvalue()}replay {' '.join(command)}: exit code {status}")
    say(f"{time.monotonic() - before:6.1f} s  replay {' '.join(command)}")


def compile_call(call: Call, folder: Path) -> float:
    """Writes an object for each class of processors; returns the seconds that it took."""
    from replay.jit._numba.shipping import emit_object, link_entry

    before = time.monotonic()
    compiling._load_numba()
    entry = getattr(importlib.import_module(call.module), call.function)
    bitcode = link_entry(getattr(entry, "py_func", entry), call.types, call.symbol)
    for processor in shipped.PROCESSORS:
        (folder / processor / f"{call.symbol}.o").write_bytes(emit_object(bitcode, processor))
    return time.monotonic() - before


def compile_all(calls: list[Call], folder: Path) -> None:
    """Compiles in as many processes as there are processors, what takes longest first."""
    for processor in shipped.PROCESSORS:
        (folder / processor).mkdir()
    calls = sorted(calls, key=lambda call: not call.module.startswith("replay.simulation"))
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        seconds = pool.map(compile_call, calls, [folder] * len(calls))
        for call, duration in zip(calls, seconds, strict=True):
            say(f"{duration:6.1f} s  {call.symbol}")


def link(folder: Path, into: Path) -> None:
    for processor in shipped.PROCESSORS:
        objects = sorted(map(str, (folder / processor).glob("*.o")))
        library = into / f"{processor}.so"
        subprocess.run(["cc", "-shared", "-s", "-Wl,-z,defs", "-o", library, *objects], check=True)


def index_of(calls: list[Call]) -> dict[str, Any]:
    """Returns the index of `replay.jit.shipped`."""
    entries: dict[str, Any] = {}
    for call in calls:
        if call.name not in entries:
            sources = kernel_cache.sources_of(str(sys.modules[call.module].__file__))
            entries[call.name] = {"files": [str(path.relative_to(PACKAGE)) for path in sources], "signatures": []}
        entries[call.name]["signatures"].append(call.signature)
    files = sorted({path for entry in entries.values() for path in entry["files"]})
    return {"entries": entries, "files": {path: shipped.digest_of(PACKAGE / path) for path in files}}


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    if not shutil.which("cc"):
        sys.exit("no C compiler: the wheel will contain no machine code")
    shutil.rmtree(shipped.FOLDER, ignore_errors=True)
    calls = note_calls()
    say(f"{len(calls)} combinations of {len({call.name for call in calls})} entries")
    if sys.argv[1:] == ["--list"]:
        for call in calls: print(call.name, call.signature, str(call.types)[:300])
        return
    with tempfile.TemporaryDirectory() as folder:
        compile_all(calls, Path(folder))
        shipped.FOLDER.mkdir()
        link(Path(folder), shipped.FOLDER)
    (shipped.FOLDER / shipped.INDEX).write_text(json.dumps(index_of(calls)))


if __name__ == "__main__":
    main()
