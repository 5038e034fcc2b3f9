"""Fuzzing: targets that read bytes as one kind of input, samples of such inputs, and mutations of them.

A target returns if the input is accepted, or refused with a sentence for the user. Anything else is a bug of replay:
another exception, too little memory, a crash or a hang.

    python tests/fuzz_targets.py TARGET,… [EXAMPLES]    hypothesis, in the limits of `limited`; the suite does this
    python benchmarks/fuzz/run.py --minutes 30          atheris, or random mutations; see there
"""

import faulthandler
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from histories import seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from replay.__main__ import COMMANDS, app, load_command
from replay.config import load_config
from replay.gates.baselines import read_baseline
from replay.gates.cases import load_suite
from replay.objects import load_objects
from replay.simulation.run import run
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.bundled_files import find_config, find_sweep, find_workload
from replay.support.errors import explain_failure
from replay.sweeps.plan import load_plan
from replay.trace import COLUMNS, REQUIRED, MemoryTrace, Metadata
from replay.workload import load_workload

MEMORY_BYTES = 2 << 30
"""Address space that a target may take in addition to what it has after its samples."""
SECONDS = 60
"""Time for one input; the slowest takes a hundredth of it."""
SLOW = list(HealthCheck)
ROWS_SIMULATED = 20_000
BYTES_SIMULATED = 64 << 30
STACK = "cpython-3.12"
LOGS = {
    "csv": (b"time_ns,op,block,size,thread\n0,malloc,7,16,0\n10,realloc,7,4000,0\n20,calloc,9,1,0\n30,free,7,,1\n",),
    "heaptrack": (
        b"v 10400 3\nX ./h arg\nI 1000 100\ns 3 abc\ns 5 main\ni 400 1 2 3\nt 1 0\na 10 1\n+ 0\nc 5\n- 0\n+ 0\nR 9\n",
        b"v 10000\n+ 10 0 abc\n+ 20 0 abd\n- abc\n",
    ),
    "mtrace": (
        b"= Start\n@ ./a:(f+0x1)[0x2] + 0x10 0x10\n@ b:[0x2] < 0x10\n@ b:[0x2] > 0x20 0x100\n- 0x20\n+ (nil) 0xff\n"
        b"@ b:[0x1] ! 0x10 0x7ffff\n= End\n",
    ),
    "rep": (b"20000\n3\n9\n1\na 0 512\na 1 128\nr 0 640\na 2 128\nf 1\nr 0 768\nf 0\nf 2\nf -1\n",),
    "umpire": (
        b'{"category":"operation","name":"make_allocator","numeric_args":{},"string_args":{"allocator_ref":"0x2"},'
        b'"tags":{"replay":"true","allocator_name":"pool"},"timestamp":92}\n'
        b'{"category":"operation","name":"allocate","numeric_args":{"size":64},"string_args":{"allocator_ref":"0x2",'
        b'"pointer":"0x10"},"tags":{"replay":"true"},"timestamp":110}\n'
        b'{"category":"operation","name":"deallocate","numeric_args":{},"string_args":{"allocator_ref":"0x2",'
        b'"pointer":"0x10"},"tags":{"replay":"true"},"timestamp":135}\n',
        b'{ "kind":"replay", "uid":7, "timestamp":10, "event": "version", "payload": { "major":0, "minor":3 } }\n'
        b'{ "kind":"replay", "uid":7, "timestamp":13, "event": "makeAllocator", "payload": { "allocator_name":"pool" },'
        b' "result": { "allocator_ref":"0x2" } }\n{ "kind":"replay", "uid":7, "timestamp":15, "event": "allocate", '
        b'"payload": { "allocator_ref": "0x2", "size": 134 }, "result": { "memory_ptr": "0x10" } }\n',
    ),
}
"""By format of text logs, small logs that use all that the format has."""
CAPTURE = """
import sys
from memray import FileDestination, Tracker
with Tracker(destination=FileDestination(sys.argv[1], compress_on_exit=False), trace_python_allocators=True):
    def nested(depth):
        return nested(depth - 1) if depth else [str(number) * 3 for number in range(20)]
    kept = [nested(depth) for depth in range(5)]
"""
ODD = [
    b"", b"0", b"-1", b"1e999", b"nan", b".inf", b"-.inf", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 20,
    b"18446744073709551615", b"9223372036854775808", b"4294967296", b"null", b"true", b"[]", b"{}", b"[[[[",
    b"{a: {b: {c: [", b"\0", b"\xff\xfe", b"\n", b",", b":", b"*a", b"&a ", b"!!python/object/apply:os.system [true]",
    b"!!binary x", b"<<: ", b"a" * 100_000, b'"', b"../../x", b"%", b"\xe2\x80\xae", b"1 TiB", b"-5 ms", b"1e400 s",
    b"\r\n", b" ", b"\t",
]  # fmt: skip
"""What mutations insert."""


def _open(path: Path, name: str) -> None:
    """Reads a trace in both ways, and simulates it if it is valid, short, and requests less memory than a machine has.

    A check of the invariants takes 16 bytes for each resident page.
    """
    for lenient in (True, False):
        batches, rows = [], 0
        trace = open_source(path, name, lenient=lenient)
        for events in trace.batches():
            rows += events.rows
            batches += [events] if rows <= ROWS_SIMULATED else []
    is_small = rows <= ROWS_SIMULATED and sum(int(events.size.sum()) for events in batches) < BYTES_SIMULATED
    if is_small and not trace.metadata.processes:
        run(MemoryTrace(batches, trace.metadata), _stack(), check=True)


@cache
def _stack():
    return load_config(STACK)


def _command(path: Path) -> None:
    """Runs a command line: words separated by line ends. `~` is the folder with the files."""
    words = [word.decode("utf-8", "surrogateescape") for word in path.read_bytes().split(b"\n")]
    if any("/" in word or ".." in word or "\0" in word for word in words) or not words[0]:
        return  # would write outside of the folder; and a command line cannot have a zero byte
    if words[0] == "record" and "--rescue" not in words[1:2]:
        return  # runs a program, which may be anything
    folder = Path.cwd()
    os.chdir(path.parent)
    try:
        result = CliRunner().invoke(app, words)
    finally:
        os.chdir(folder)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code


TARGETS: dict[str, Callable[[Path], object]] = {
    **{name: partial(_open, name=name) for name in (*LOGS, "memray", "parquet")},
    "table": partial(_open, name="parquet"),
    "workload": load_workload,
    "objects": load_objects,
    "config": load_config,
    "sweep": lambda path: load_plan(str(path)),
    "suite": load_suite,
    "baseline": read_baseline,
    "command": _command,
}
SUFFIXES = {"suite": ".toml", "baseline": ".json", "parquet": ".parquet", "table": ".parquet"}
"""Others are `.yaml`, which only the readers of YAML look at."""


def check(target: str, content: bytes, folder: Path) -> bool:
    """Returns whether the input is accepted; raises what is a bug of replay."""
    path = folder / f"input{SUFFIXES.get(target, '.yaml')}"
    path.write_bytes(content)
    lost: list[sys.UnraisableHookArgs] = []
    sys.unraisablehook = lost.append  # otherwise its traceback would be on the user's terminal
    try:
        TARGETS[target](path)
    except Exception as error:
        if isinstance(error, MemoryError) or explain_failure(error) is None:
            raise
        return False
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        assert not lost, lost[0].exc_value
    return True


# Samples


@cache
def samples(target: str) -> tuple[bytes, ...]:
    """Returns valid inputs of a target."""
    if target in LOGS:
        return LOGS[target]
    return _SAMPLES[target]()


def _captures() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "capture.bin"
        subprocess.run([sys.executable, "-c", CAPTURE, path], check=True, capture_output=True)
        return (path.read_bytes(),)


def _parquets() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        write_trace(seeded(3, 300).trace(), path)
        return (path.read_bytes(), *(table(random.Random(seed), wrong=0) for seed in range(3)))


def _baselines() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "baseline.json"
        words = ["baseline", "startup-static", "-a", STACK, "--baseline", str(path)]
        assert CliRunner().invoke(app, words).exit_code == 0
        return (path.read_bytes(),)


def _files(*paths: Path) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in paths)


_SAMPLES: dict[str, Callable[[], tuple[bytes, ...]]] = {
    "memray": _captures,
    "parquet": _parquets,
    "table": _parquets,
    "workload": lambda: _files(*map(find_workload, ("web-service", "pin-every-arena"))),
    "objects": lambda: _files(*map(find_workload, ("weak-cache", "exceptions"))),
    "config": lambda: _files(*map(find_config, ("cpython-3.12", "cpython-3.9"))),
    "sweep": lambda: _files(*map(find_sweep, ("glibc-settings", "rss-does-not-go-down"))),
    "suite": lambda: (b'[cases.a]\nsource = "startup-static"\ntolerances = ["syscalls:10%", "blowup<=1.4"]\n',),
    "baseline": _baselines,
    "command": lambda: tuple("\n".join(words).encode() for words in COMMAND_LINES),
}
COMMAND_LINES = [
    ["run", "startup-static", "-a", STACK, "--no-reference", "--set", "glibc.top_pad=0", "--json"],
    ["run", "input.yaml", "--sample", "10ms", "--env", "MALLOC_ARENA_MAX=1"],
    ["trace", "info", "input.yaml", "--json"],
    ["trace", "cut", "startup-static", "-o", "cut.parquet", "--from", "1ms", "--to", "2ms", "--force"],
    ["trace", "scale", "startup-static", "-o", "s.parquet", "--repeat", "2", "--size-factor", "1.5", "--force"],
    ["generate", "startup-static", "-o", "g.parquet", "--force", "--seed", "3"],
    ["import", "input.yaml", "-o", "i.parquet", "--format", "csv", "--lenient"],
    ["check", "startup-static", "-a", STACK, "-t", "resident_bytes_peak<=1GiB"],
    ["compare", "startup-static", "-a", f"{STACK},bump", "--json"],
    ["schema", "workload"],
    ["record", "--rescue", "r.parquet"],
]


# Mutations


def mutated(random_: random.Random, target: str) -> bytes:
    """Returns a sample of the target with some random edits."""
    if target == "table":
        return table(random_, wrong=random_.randrange(1, 4))
    content = bytearray(random_.choice(samples(target)))
    for _ in range(random_.randrange(1, 6)):
        edit(random_, content, target)
    return bytes(content)


def edit(random_: random.Random, content: bytearray, target: str) -> None:
    """Changes the content in place."""
    begin = random_.randrange(len(content) + 1)
    end = min(len(content), begin + random_.choice((0, 1, 2, 4, 8, 64, 1024)))
    kind = random_.randrange(7)
    if kind == 0 and begin < len(content):
        content[begin] ^= 1 << random_.randrange(8)
    elif kind == 1 and begin < len(content):
        content[begin] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))
    elif kind == 2:
        del content[begin:end]
    elif kind == 3:
        content[begin:begin] = content[begin:end] * random_.choice((1, 2, 50))
    elif kind == 4:
        content[begin:end] = random_.choice(_words(target))
    elif kind == 5:
        other = random_.choice(samples(target))
        at = random_.randrange(len(other) + 1)
        content[begin:end] = other[at : at + 200]
    elif _numbers(content):
        number = random_.choice(_numbers(content))
        content[number[0] : number[1]] = random_.choice(ODD)


def _numbers(content: bytearray) -> list[tuple[int, int]]:
    """Returns begin and end of the numbers in a text, and of words behind `: `."""
    return [found.span() for found in re.finditer(rb"(?<![\w.])\d[\w.]*|(?<=: )\S+", bytes(content[: 1 << 16]))]


@cache
def _words(target: str) -> list[bytes]:
    """Returns what is inserted: odd values, and for command lines all names of commands and options."""
    if target != "command":
        return ODD
    options = [option for name in COMMANDS for each in _leaves(load_command(name)) for option in each.params]
    words = [*COMMANDS, *(word for option in options for word in option.opts), "input.yaml", "startup-static"]
    return [*(b"\n" + word.encode() + b"\n" for word in sorted(set(words))), *ODD]


def _leaves(command) -> list:
    below = getattr(command, "commands", None)
    return [leaf for each in below.values() for leaf in _leaves(each)] if below else [command]


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
OTHERS = ("float64", "bool", "string", "binary", "timestamp[ns]", "decimal128(5)", "list<int64>", "null", "dictionary")
CODECS = ("none", "snappy", "gzip", "zstd", "lz4", "brotli")


def table(random_: random.Random, wrong: int) -> bytes:
    """Returns a Parquet file with a trace that has that many mistakes in types, values, columns or metadata."""
    rows = random_.choice((0, 1, 2, 50, 3000))
    ops = [0 if row % 2 == 0 else 3 for row in range(rows)]
    columns = {
        "time_ns": list(range(rows)), "thread": [0] * rows, "op": ops, "domain": [2] * rows,
        "block": [row // 2 for row in range(rows)], "size": [100 if op == 0 else 0 for op in ops],
    }  # fmt: skip
    types = {name: COLUMNS[name].file_type for name in REQUIRED}
    metadata: object = {"format_version": 1, "phases": ["a"], "sites": [["f", "a.py", 1]]}
    text = None
    for _ in range(wrong):
        name, kind = random_.choice(list(columns)), random_.randrange(8)
        values = columns[name]
        if kind == 0:
            types[name] = random_.choice(INTEGERS)
        elif kind == 1:
            types[name] = random_.choice(OTHERS)
        elif kind == 2 and rows:
            values[random_.randrange(rows)] = random_.choice(
                (None, -1, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 255, 7)
            )
        elif kind == 3:
            columns[random_.choice(("address", "site", "type", "alignment", "more", "a" * 100_000, ""))] = list(values)
        elif kind == 4 and len(columns) > 1:
            del columns[name]
        elif kind == 5 and isinstance(metadata, dict):
            key = random_.choice(("format_version", *(each.name for each in fields(Metadata)), "x"))
            metadata[key] = random_.choice(
                (None, -1, 10**400, 1.5, "x" * 100_000, [], {}, [[]], [{"name": "p", "threads": [0, 0]}], [[1, 2, 3]])
            )
        elif kind == 6:
            text = random_.choice((b"", b"\xff", b"[" * 100_000, b"1", b'{"format_version": NaN}', b"null", b"{}"))
        else:
            random_.shuffle(values)
    arrays = {name: _array(values, types.get(name, "int64")) for name, values in columns.items()}
    written = pa.table(arrays)
    text = json.dumps(metadata).encode() if text is None else text
    if random_.randrange(10):
        written = written.replace_schema_metadata({b"replay": text})
    file = BytesIO()
    pq.write_table(
        written, file, row_group_size=random_.choice((1, 7, 1000, 1 << 20)), compression=random_.choice(CODECS),
        use_dictionary=bool(random_.randrange(2)), data_page_version=random_.choice(("1.0", "2.0")),
        write_statistics=bool(random_.randrange(2)), data_page_size=random_.choice((16, 1 << 20)),
    )  # fmt: skip
    return file.getvalue()


def _array(values: list, type_: str) -> pa.Array:
    """Returns the values as an array of this type; nulls for those that the type cannot have."""
    named = {
        "timestamp[ns]": pa.timestamp("ns"), "decimal128(5)": pa.decimal128(5), "list<int64>": pa.list_(pa.int64()),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }  # fmt: skip
    made = named[type_] if type_ in named else pa.type_for_alias(type_)
    if type_ in ("string", "binary", "dictionary"):
        texts = pa.array([None if value is None else str(value) for value in values])
        return texts.dictionary_encode() if type_ == "dictionary" else texts.cast(made)
    if type_ == "list<int64>":
        return pa.array([None if value is None else [value] for value in values], made)
    if type_ in ("float64", "bool", "null", "decimal128(5)"):
        return pa.nulls(len(values), made)
    try:
        return pa.array(values, made)
    except (pa.ArrowException, OverflowError):
        return pa.array([value if value is None or 0 <= value < 128 else None for value in values], made)


# Runs


@contextmanager
def limited() -> Iterator[None]:
    """In this block, memory is limited to MEMORY_BYTES more than now. `in_time` limits the time of an input."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def in_time(target: str, content: bytes, folder: Path) -> bool:
    """The same as `check`. Ends the process with the stacks of all threads if it takes longer than SECONDS."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        return check(target, content, folder)
    finally:
        faulthandler.cancel_dump_traceback_later()


def main(target: str, examples: int) -> None:
    """Runs hypothesis on a target: the same examples each time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sample in samples(target):  # compiles the kernels
            assert check(target, sample, folder) or target == "command", sample[:200]
        accepted = []

        @settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=SLOW)
        @given(st.randoms(use_true_random=False))
        def fuzz(random_: random.Random) -> None:
            accepted.append(in_time(target, mutated(random_, target), folder))

        with limited():
            fuzz()
    print(f"{target}: {len(accepted)} inputs, {sum(accepted)} accepted")


if __name__ == "__main__":
    for each in sys.argv[1].split(","):
        main(each, int(sys.argv[2]) if len(sys.argv) > 2 else 100)
