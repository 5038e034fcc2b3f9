"""Damaged, hostile and random inputs are accepted or refused with a sentence: no crash, no hang, no traceback."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_python
from fuzz_targets import TARGETS, check, samples

from replay.objects import load_objects
from replay.sources import open_source
from replay.support.errors import ReplayError, TraceError
from replay.support.yaml_documents import parse_yaml
from replay.trace import COLUMNS, REQUIRED, Op
from replay.workload import load_workload

EXAMPLES = 30
TOGETHER = [
    "csv,mtrace,rep,heaptrack,umpire,memray",
    "parquet,table",
    "workload,objects,config,sweep,suite,baseline",
    "command",
]
STREAM = "{arrivals: {kind: fixed, rate: 1/s}, size: 1, lifetime: 1 s}"


def fuzzed(targets: str, examples: int) -> "subprocess.CompletedProcess[str]":
    return run_python(Path(__file__).with_name("fuzz_targets.py"), targets, examples)


def test_every_target_is_fuzzed() -> None:
    assert {name for names in TOGETHER for name in names.split(",")} == set(TARGETS)


@pytest.mark.system
@pytest.mark.parametrize("targets", TOGETHER)
def test_mutated_inputs_are_accepted_or_refused_with_a_sentence_in_bounded_memory(targets: str) -> None:
    done = fuzzed(targets, EXAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(targets.split(","))


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("target", TARGETS)
def test_many_mutated_inputs_are_accepted_or_refused_with_a_sentence(target: str) -> None:
    done = fuzzed(target, 10 * EXAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bug_in_a_reader_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "csv", lambda path: {}[path.read_bytes()])
    with pytest.raises(KeyError):
        check("csv", b"x", tmp_path)


def damaged_capture(at: int, content: bytes) -> bytes:
    """Returns a capture of memray with other bytes in its header."""
    capture = samples("memray")[0]
    return capture[:at] + content + capture[at + len(content) :]


FOUND = {
    "undecodable line": ("csv", lambda: b"time_ns,op,block,size\n0,malloc,1,16\n\x80,,,,,\n"),
    "number of requests": ("rep", lambda: b"2000\n3\n" + b"9" * 5000 + b"\n1\na 0 512\n"),
    "empty figure": ("baseline", lambda: re.sub(rb'("\w+": )\d+', rb"\1[]", samples("baseline")[0], count=2)),
    "kind of capture": ("memray", lambda: damaged_capture(16, b"\xff")),
    "time of the start": ("memray", lambda: damaged_capture(33, b"\xff" * 7 + bytes(9))[:200]),
    "time of the end": ("memray", lambda: damaged_capture(41, b"\xff" * 7)),
}
"""What fuzzing found: inputs that ended in a traceback or crashed the process."""


@pytest.mark.parametrize(("target", "content"), FOUND.values(), ids=FOUND)
def test_an_input_that_fuzzing_found_ends_in_a_sentence(
    target: str, content: Callable[[], bytes], tmp_path: Path
) -> None:
    check(target, content(), tmp_path)


def aliases(line: str, levels: int = 9) -> str:
    """Returns lines with an alias of each in the next, ten times."""
    each = "[{}]" if "[" in line else "{{<<: [{}]}}"
    numbers = range(1, levels + 1)
    return "\n".join([line, *(f"a{n}: &a{n} {each.format(', '.join([f'*a{n - 1}'] * 10))}" for n in numbers)])


@pytest.mark.parametrize(
    "text",
    [aliases("a0: &a0 [x, x]"), aliases("a0: &a0 {k: v}")],
    ids=["lists", "merged mappings"],
)
def test_aliases_that_stand_for_billions_of_values_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(f"{text}\nduration: *a9\n")
    with pytest.raises(
        ReplayError, match=r"bomb\.yaml:1: is not valid YAML: its aliases stand for more than 1,048,576"
    ):
        load_workload(path)
    with pytest.raises(ValueError, match="its aliases stand for more than 1,048,576 values"):
        parse_yaml(path.read_text())


def test_aliases_that_stand_for_a_thousand_values_are_read() -> None:
    found = parse_yaml(aliases("a0: &a0 [x, x]", levels=2))
    assert found["a2"] == [[["x", "x"]] * 10] * 10


def test_a_value_within_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("duration: &a [*a]\n")
    with pytest.raises(ReplayError, match=r"loop\.yaml:1: duration: \[\[\.\.\.\]\] is not a time"):
        load_workload(path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [false]", "!!python/name:os.system", "!custom x"])
@pytest.mark.parametrize("load", [load_workload, load_objects])
def test_tags_of_python_are_refused(load, tag: str, tmp_path: Path) -> None:
    path = tmp_path / "tags.yaml"
    path.write_text(f"duration: {tag}\n")
    with pytest.raises(ReplayError, match=r"tags\.yaml:1: is not valid YAML: could not determine a constructor"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"), [("duration", ".nan"), ("duration", ".inf"), ("duration", "1e300 s"), ("seed", "9" * 300)]
)
def test_numbers_without_a_meaning_are_refused_with_line_and_key(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    lines = {"duration": "1 s", "seed": "1", key: value}
    path.write_text("".join(f"{name}: {text}\n" for name, text in lines.items()) + f"streams: {{a: {STREAM}}}\n")
    with pytest.raises(ReplayError, match=rf"numbers\.yaml:{list(lines).index(key) + 1}: {key}: "):
        load_workload(path)


def test_a_name_of_a_million_characters_is_read(tmp_path: Path) -> None:
    path, name = tmp_path / "long.yaml", "n" * 10**6
    path.write_text(f"duration: 1 s\nstreams:\n  ? {name}\n  : {STREAM}\n")
    assert list(load_workload(path).streams) == [name]


def write_table(path: Path, rows: int, metadata: bytes = b"", **options: object) -> None:
    """Writes a trace of events that concern no block."""
    values = dict.fromkeys(REQUIRED, 0) | {"op": int(Op.GC_START)}
    arrays = {name: pa.repeat(pa.scalar(value, COLUMNS[name].file_type), rows) for name, value in values.items()}
    table = pa.table(arrays).replace_schema_metadata({b"replay": metadata} if metadata else None)
    pq.write_table(table, path, compression="zstd", **options)


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_row_group_of_millions_of_rows_in_a_small_file_is_read_batch_by_batch(
    dictionary: bool, tmp_path: Path
) -> None:
    path, rows = tmp_path / "bomb.parquet", 1 << 24
    write_table(path, rows, row_group_size=rows, use_dictionary=dictionary, data_page_size=1 << 30)
    assert path.stat().st_size < rows / 10
    sizes = [events.rows for events in open_source(path).batches()]
    assert (sum(sizes), max(sizes)) == (rows, 1 << 18)


@pytest.mark.parametrize(
    "metadata",
    [b"[" * 10**6, b'{"format_version": 1, "phases": ' + b"[" * 10**6, b'{"format_version": ' + b"9" * 10**4 + b"}"],
    ids=["deep", "deep below a key", "huge number"],
)
def test_hostile_metadata_is_refused(metadata: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    write_table(path, 1, metadata)
    with pytest.raises(
        TraceError, match=r"metadata\.parquet: the metadata under the key `replay` is not a JSON object"
    ):
        open_source(path)


def test_two_thousand_row_groups_and_a_name_of_a_million_characters_are_read(tmp_path: Path) -> None:
    path, name = tmp_path / "groups.parquet", "n" * 10**6
    write_table(path, 2_000, json.dumps({"format_version": 1, "phases": [name]}).encode(), row_group_size=1)
    trace = open_source(path)
    assert trace.metadata.phases == (name,)
    assert sum(events.rows for events in trace.batches()) == 2_000
