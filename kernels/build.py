"""Makes the machine code that wheels for Linux on x86-64 carry: python kernels/build.py

First, the commands of `scenarios` run with all kernels as plain Python, and the types of each call are noted. Then each
entry is compiled for each combination of types and for each class of processors, in as many processes as there are
processors, and the objects are linked by the C compiler. `replay.jit.shipped` describes the result, and
`replay.recorder.hook_code` that for the hooks of the recorder.
"""

import ctypes
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
from base64 import b64encode
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from scenarios import commands

from replay.jit import compiling, kernel_cache, shipped
from replay.recorder import frames, hook_code
from replay.recorder.hook_kinds import Extras
from replay.support.atomic_files import new_file

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


@contextmanager
def noted_calls() -> Iterator[dict[Any, Call]]:
    """Runs entries as plain Python in this block; fills in each combination of types with which one is called."""
    from replay.jit._numba.shipping import type_of

    noted: dict[Any, Call] = {}

    def note(entry: Any, *arguments: Any) -> Any:
        function = entry.py_func
        key = (function.__module__, function.__qualname__, shipped.signature_of(arguments))
        if key not in noted:
            noted[key] = Call(*key, tuple(map(type_of, arguments)))
        return function(*arguments)

    compiled, compiling.Entry.__call__ = compiling.Entry.__call__, note  # type: ignore[method-assign]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            yield noted
    finally:
        compiling.Entry.__call__ = compiled  # type: ignore[method-assign]


def run(command: list[str]) -> None:
    """Runs a command of replay in this process. Raises SystemExit with its output if it fails."""
    from replay.__main__ import app

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


def link(calls: list[Call], into: Path) -> None:
    """Makes the libraries of compiled calls in a folder."""
    into.mkdir(exist_ok=True)
    for processor in shipped.PROCESSORS:
        library = into / f"{processor}.so"
        objects = [object_of(call, processor) for call in calls]
        subprocess.run(["cc", "-shared", "-s", "-o", library, *objects, "-lm"], check=True)
        ctypes.PyDLL(str(library))  # refused unless all symbols are those of C and of Python


def object_of(call: Call, processor: str) -> Path:
    """Returns the path of an object. It is in the kernel cache, so it belongs to the sources as they are."""
    source = str(importlib.import_module(call.module).__file__)
    return kernel_cache.cache_folder((source,)) / f"{call.symbol}-{processor}.o"


def compile_all(calls: list[Call]) -> None:
    """Compiles in as many processes as there are processors, what takes longest first."""
    calls = sorted(calls, key=lambda call: not call.function.startswith(("simulate", "run_")))
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for done in as_completed([pool.submit(compile_call, call) for call in calls]):
            say(done.result())


def compile_call(call: Call) -> str:
    """Makes an object for each class of processors; returns what was done, and the seconds of processor time."""
    from replay.jit._numba.shipping import emit_object, link_entry

    before = time.process_time()
    missing = [name for name in shipped.PROCESSORS if not object_of(call, name).exists()]
    if missing:
        compiling._load_numba()
        entry = getattr(importlib.import_module(call.module), call.function)
        bitcode = link_entry(getattr(entry, "py_func", entry), call.types, call.symbol)
        for processor in missing:
            with new_file(object_of(call, processor), force=True) as file:
                file.write_bytes(emit_object(bitcode, processor))
    return f"{time.process_time() - before:6.1f} s  {call.name} {call.signature}"


def all_hooks() -> dict[str, Any]:
    """Returns the recorder's hooks for all arguments, as `replay.recorder.hook_code` reads them."""
    from replay.recorder.hooks import make_hooks

    kinds = [(True, False), (False, True), (True, True)]
    extras = [None, *(Extras(version, *kind) for version, kind in product(frames.LAYOUTS, kinds))]
    made = {hook_code.key_of(*key): make_hooks(*key) for key in product((False, True), extras)}
    return {key: {"text": b64encode(code.text).decode(), "offsets": code.offsets} for key, code in made.items()}


def index_of(calls: Iterable[Call]) -> dict[str, Any]:
    """Returns the index of `replay.jit.shipped`, with the sources as they are now."""
    entries: dict[str, Any] = {hook_code.HOOKS: {"files": sources_of(hook_code.HOOKS)}}
    for call in calls:
        entry = entries.setdefault(call.name, {"files": sources_of(call.module), "signatures": []})
        entry["signatures"].append(call.signature)
    files = sorted({path for entry in entries.values() for path in entry["files"]})
    return {"entries": entries, "files": {path: shipped.digest_of(PACKAGE / path) for path in files}}


def sources_of(module: str) -> list[str]:
    """Returns the files that decide about the code of a module's entries."""
    file = str(importlib.import_module(module).__file__)
    return [str(path.relative_to(PACKAGE)) for path in kernel_cache.sources_of(file)]


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    if not shutil.which("cc"):
        sys.exit("there is no C compiler to link with: a wheel would contain no machine code")
    shutil.rmtree(shipped.FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), noted_calls() as noted:
        for command in commands():
            run(command)
    calls = sorted(noted.values(), key=lambda call: call[:3])
    say(f"{len(calls)} combinations of types for {len({call.name for call in calls})} entries")
    index = index_of(calls)
    compile_all(calls)
    link(calls, shipped.FOLDER)
    (shipped.FOLDER / hook_code.HOOKS_FILE).write_text(json.dumps(all_hooks()))
    (shipped.FOLDER / shipped.INDEX).write_text(json.dumps(index))


if __name__ == "__main__":
    main()
