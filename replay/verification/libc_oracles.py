"""Finds the C libraries of this machine, and runs traces on them with `libc_harness.c`.

It finds the system's own library, and `libcs/*` in the cache folder: unpacked packages, which run with their own
dynamic loader.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay.allocators.glibc import RULES
from replay.allocators.musl.settings import VERSIONS as MUSL_VERSIONS
from replay.jit.kernel_cache import cache_root
from replay.trace import Trace
from replay.verification.harness import HarnessError, compile_program, run_program, write_events
from replay.verification.oracles import Absence, unavailable

SOURCE = Path(__file__).with_name("libc_harness.c")
RESIDENT_POINTS = 10
"""The same number as in the harness."""
PLACE = (8 << 30) + (4 << 10)
"""The base of mappings modulo 16 GiB."""
_HEADER = np.dtype([(name, "<u8") for name in ("rows", "base", "heap", "run_ns", "thread_bytes", "thread_place")])
_MARK = re.compile(r"^(?:\d+ +)?madvise\(.*, 0, (0x3039|12345).*$", re.MULTILINE)
"""The system call of the harness before and after the trace."""
_CALL = re.compile(r"^(?:\d+ +)?(?P<name>\w+)\((?P<arguments>.*)\)\s*= (?P<result>\S+)", re.MULTILINE)
PAGE_BYTES = 4096
"""Linux maps whole pages: musl does not round lengths."""
_VERSION = re.compile(r"release version (\d+\.\d+)")
_MUSL_VERSION = re.compile(rb"\0(1\.\d+\.\d+)\0")
_FLAGS = ("-O2", "-nostartfiles", "-Wl,-z,now", "-Wl,--no-as-needed", "-l:libpthread.so.0")
"""Before 2.34, libpthread is a separate library."""
_SECONDS = 120
_EVENTS_A_SECOND = 20_000
"""Lower limit of the speed with traced system calls, for timeouts."""


@dataclass(frozen=True)
class LibcOracle:
    """A real glibc whose version has a model."""

    name: str
    """A name like `glibc-2.36`."""
    version: str
    loader: tuple[str, ...]
    """The dynamic loader and its options; empty for the system's own library, and if the harness is static."""
    path: Path
    model: str = "glibc"
    flags: tuple[str, ...] = _FLAGS
    """How the harness is compiled and linked with it."""
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class LibcRun:
    """The result of a run with the real malloc."""

    base: int
    """The end of the first mapping of the run: the model's `linux.mmap_base`."""
    heap: int
    """The start of the heap: the model's `linux.brk_base`."""
    run_ns: int
    thread_bytes: int
    """Size and flags of the chunk that each additional thread allocates in the main arena before the trace."""
    thread_place: int
    """Address of the block in the first of these chunks."""
    addresses: np.ndarray
    """An int64 for each event; 0 if it returned no address."""
    resident: np.ndarray
    """Bytes at RESIDENT_POINTS evenly spaced rows; zeros if not measured."""
    system_calls: list[tuple[str, int, int]] | None
    """Name, address and length of each that changed the address space (brk: the new end, and 0); None if not traced."""


def survey_libcs() -> tuple[list[LibcOracle], list[Absence]]:
    """Returns the available libraries by version, and those that are not available with the reasons."""
    oracles: dict[str, LibcOracle] = {}
    absences: list[Absence] = []
    for path, loader in _libraries():
        try:
            about = run_program([*loader, str(path)], {}, _SECONDS, str(path))
        except HarnessError as error:
            absences.append(Absence(str(path), str(error)))
            continue
        match = _VERSION.search(about)
        if match is None:
            absences.append(Absence(str(path), "is not a glibc"))
        elif match[1] not in RULES:
            absences.append(Absence(str(path), f"glibc {match[1]} has no model; supported: {', '.join(RULES)}"))
        else:
            oracles.setdefault(match[1], LibcOracle(f"glibc-{match[1]}", match[1], loader, path))
    for version in RULES:
        if version not in oracles:
            absences.append(Absence(f"glibc-{version}", "on Debian, .ci/fetch-libcs of the sources downloads it"))
    return [oracles[version] for version in RULES if version in oracles], absences


def survey_musls() -> tuple[list[LibcOracle], list[Absence]]:
    """Returns the same for musl: the folders with a static library and its headers."""
    oracles: dict[str, LibcOracle] = {}
    absences: list[Absence] = []
    for library in _static_musls():
        match = _MUSL_VERSION.search(library.read_bytes())
        version = match[1].decode() if match else "unknown"
        if version in MUSL_VERSIONS:
            oracles.setdefault(version, _musl_oracle(version, library))
        else:
            absences.append(
                Absence(str(library), f"musl {version} has no model; supported: {', '.join(MUSL_VERSIONS)}")
            )
    for version in MUSL_VERSIONS:
        if version not in oracles:
            absences.append(Absence(f"musl-{version}", "on Debian, .ci/fetch-libcs of the sources downloads it"))
    return [oracles[version] for version in MUSL_VERSIONS if version in oracles], absences


def _static_musls() -> Iterator[Path]:
    yield from sorted(Path("/usr/lib").glob("x86_64-linux-musl/libc.a"))
    yield from sorted((cache_root() / "libcs").glob("*/usr/lib/x86_64-linux-musl/libc.a"))


def _musl_oracle(version: str, library: Path) -> LibcOracle:
    headers = library.parents[2] / "include" / library.parent.name
    flags = ("-O2", "-DMUSL", "-static", "-no-pie", "-nostdlib", "-isystem", str(headers))
    start, end = ([str(library.with_name(name)) for name in names] for names in (("crt1.o", "crti.o"), ("crtn.o",)))
    objects = (*start, str(library), "-lgcc", *end)
    return LibcOracle(f"musl-{version}", version, (), library, "musl", flags, objects)


def choose_libcs(choice: str) -> list[LibcOracle]:
    """Returns the libraries of a version like `2.36`, of a name like `musl-1.2.5`, or `all`."""
    (glibcs, absences), (musls, absent_musls) = survey_libcs(), survey_musls()
    chosen = [oracle for oracle in (*glibcs, *musls) if choice in ("all", oracle.version, oracle.name, oracle.model)]
    if not chosen:
        raise unavailable("C library", choice, [*absences, *absent_musls], "replay verify --libc --list")
    return chosen


def _libraries() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yields each libc.so.6 with the command line of its dynamic loader."""
    for path in sorted(Path("/").glob("lib*/*-linux-gnu/libc.so.6")):
        if path.parent.name.startswith("x86_64"):
            yield path, ()
    for path in sorted((cache_root() / "libcs").glob("*/**/x86_64-linux-gnu/libc.so.6")):
        yield path, (str(path.with_name("ld-linux-x86-64.so.2")), "--library-path", str(path.parent))


def run_libc(
    trace: Trace,
    oracle: LibcOracle,
    *,
    mode: str = "addresses",
    traced: bool = False,
    environment: Mapping[str, str] | None = None,
) -> LibcRun:
    """Runs a trace with a real malloc. The harness explains `mode`. `traced`: strace records the system calls."""
    harness = "libc-harness" if oracle.model == "glibc" else f"{oracle.name}-harness"
    program = compile_program(SOURCE, oracle.flags, harness, *oracle.objects)
    with tempfile.TemporaryDirectory(prefix="replay-verify-") as folder:
        events, result, calls = (Path(folder) / name for name in ("events", "result", "calls"))
        rows = write_events(trace, events)
        command = [*oracle.loader, str(program), str(events), str(result), str(PLACE), mode]
        settings = dict(environment or {})
        if traced:  # the settings must not apply to strace itself, which would use huge pages too
            options = [part for name, value in settings.items() for part in ("-E", f"{name}={value}")]
            options += ["-f", "-qq", "-X", "verbose", "-e", "trace=memory", "-o", str(calls)]
            command, settings = [find_strace(), *options, *command], {}
        run_program(command, settings, _SECONDS + rows / _EVENTS_A_SECOND, oracle.name)
        header = np.fromfile(result, _HEADER, 1)[0]
        return LibcRun(
            base=int(header["base"]),
            heap=int(header["heap"]),
            run_ns=int(header["run_ns"]),
            thread_bytes=int(header["thread_bytes"]),
            thread_place=int(header["thread_place"]),
            addresses=np.fromfile(result, "<i8", rows, offset=_HEADER.itemsize),
            resident=np.fromfile(result, "<i8", RESIDENT_POINTS, offset=_HEADER.itemsize + 8 * rows),
            system_calls=_read_calls(calls.read_text()) if traced else None,
        )


def find_strace() -> str:
    """Returns the path of strace; raises HarnessError if it is missing."""
    found = shutil.which("strace")
    if found is None:
        raise HarnessError("strace is not installed, so system calls cannot be compared")
    return found


def _read_calls(text: str) -> list[tuple[str, int, int]]:
    """Returns the system calls in strace's output between the marks, without queries of the break."""
    calls = []
    for match in _CALL.finditer(_MARK.split(text)[2]):
        arguments = [argument.strip() for argument in match["arguments"].split(",")]
        if match["name"] == "brk":
            if arguments[0] != "NULL":
                calls.append(("brk", int(match["result"], 16), 0))
        elif match["name"] == "mmap":
            calls.append(("mmap", int(match["result"], 16), -(-int(arguments[1]) // PAGE_BYTES) * PAGE_BYTES))
        elif match["name"] == "mremap":
            calls.append(("mremap", int(match["result"], 16), int(arguments[2])))
        else:
            calls.append((match["name"], int(arguments[0], 16), int(arguments[1])))
    return calls
