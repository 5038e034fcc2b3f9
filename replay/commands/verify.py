"""`replay verify`: compares the models with the real allocators of this machine."""

from importlib import import_module
from typing import TYPE_CHECKING

from replay.commands import verify_options as options
from replay.commands.options import AsJson
from replay.commands.verify_libc import list_libcs, verify_libc
from replay.commands.verify_objects import verify_objects
from replay.commands.verify_pymalloc import list_oracles, verify_pymalloc
from replay.commands.verify_recording import verify_recording
from replay.commands.verify_sweep import verify_sweep
from replay.support.errors import ReplayError

if TYPE_CHECKING:
    from replay.trace import Trace

EVERY = "all"


def verify(
    source: options.Source = None,
    preset: options.Allocator = EVERY,
    events: options.Events = 100_000,
    seed: options.Seed = 0,
    libc: options.Libc = False,
    objects: options.Objects = False,
    env: options.Env = None,
    resident: options.Resident = False,
    sweep: options.Sweep = None,
    list_: options.ListOracles = False,
    json_: AsJson = False,
) -> None:
    """Run traces through real allocators and through their models, and compare every address.

    Exit code 0: no difference. 1: a difference. 2: a comparison could not be run.

    Example: replay verify -a cpython-3.11

    Example: replay verify recording.parquet

    Example: replay verify --libc -a 2.36 --env MALLOC_MMAP_THRESHOLD_=65536

    Example: replay verify --libc -a musl

    Example: replay verify web-service --sweep every-cpython

    Example: replay verify large-buffers --sweep glibc-settings -a cpython-3.12-malloc

    Example: replay verify --objects -a 3.12
    """
    if objects:
        if libc or sweep is not None or list_:
            raise ReplayError("--objects cannot be combined with --libc, --sweep or --list")
        verify_objects(source, preset, as_json=json_)
        return
    if not libc and (env or resident):
        raise ReplayError("--env and --resident require --libc")
    if list_:
        list_libcs(json_) if libc else list_oracles(json_)
        return
    if sweep is not None:
        if libc:
            raise ReplayError("--sweep and --libc exclude each other: the sweep decides which real allocators are used")
        verify_sweep(sweep, source, None if preset == EVERY else preset, as_json=json_)
        return
    trace = _open(source)
    if trace is not None and not libc and preset == EVERY and _is_recording(trace):
        verify_recording(trace, str(source), as_json=json_)
        return

    def cases() -> "list[tuple[str, Trace]]":
        if trace is not None:
            return [(str(source), trace)]
        return _shapes("libc_shapes" if libc else "shapes", events, seed)

    if libc:
        verify_libc(cases, preset, env or [], resident=resident, as_json=json_)
    else:
        verify_pymalloc(cases, preset, as_json=json_)


def _open(source: str | None) -> "Trace | None":
    from replay.sources import open_source
    from replay.trace.processes import refuse_processes
    from replay.verification import ONE_PROCESS

    if source is None:
        return None
    trace = open_source(source)
    refuse_processes(trace, source, ONE_PROCESS)
    return trace


def _is_recording(trace: "Trace") -> bool:
    from replay.verification.recordings import is_recording

    return is_recording(trace)


def _shapes(module: str, events: int, seed: int) -> "list[tuple[str, Trace]]":
    """Returns the built-in cases as pairs of name and trace."""
    shapes = import_module(f"replay.verification.{module}")
    return [(name, shapes.build_shape(name, events, seed)) for name in shapes.SHAPES]
