"""Logs of Umpire and data files of heaptrack: exact events of small files, and what is refused."""

import json

import pytest
from conftest import event_rows, refusal, written

from replay.sources import open_source
from replay.support.errors import ReplayError, TraceError
from replay.trace import NO_SITE, Site


def rows(trace):
    return event_rows(trace, "op", "block", "size", "time_ns")


def sites(trace):
    """Returns the name of the site of each event; None if it is unknown."""
    numbers = [site for events in trace.batches() for site in events.site.tolist()]
    return [None if number == NO_SITE else trace.metadata.sites[number] for number in numbers]


def operation(name, time_ns, texts, numbers=None, allocator_name=None):
    tags = {"replay": "true"} | ({"allocator_name": allocator_name} if allocator_name else {})
    record = {"category": "operation", "name": name, "numeric_args": numbers or {}, "string_args": texts, "tags": tags}
    return json.dumps(record | {"timestamp": time_ns}, separators=(",", ":")) + "\n"


HOST, POOL = {"allocator_ref": "0x1"}, {"allocator_ref": "0x2"}
UMPIRE = "".join(
    [
        '{"category":"metadata","name":"version","numeric_args":{"major":2022},"timestamp":90}\n',
        operation("make_memory_resource", 91, HOST, {"introspection": 1}, "HOST"),
        operation("make_allocator", 92, POOL, {}, "pool"),
        operation("allocate", 100, HOST | {"pointer": "0x10"}, {"size": 128}),
        operation("allocate", 110, POOL | {"pointer": "0x10"}, {"size": 64}),
        operation("deallocate", 120, POOL | {"pointer": "0x99"}),
        operation("reallocate", 130, HOST | {"current_ptr": "0x10"}, {"size": 256}, "HOST"),
        operation("allocate", 131, HOST | {"pointer": "0x20"}, {"size": 256}),
        operation("deallocate", 132, HOST | {"pointer": "0x10"}),
        operation("reallocate", 133, HOST | {"new_ptr": "0x20"}, {}, "HOST"),
        operation("reallocate", 140, HOST | {"current_ptr": "(nil)"}, {"size": 8}, "HOST"),
        operation("reallocate", 141, HOST | {"new_ptr": "0x30"}, {}, "HOST"),
        operation("coalesce", 142, {}, {}, "pool"),
        operation("deallocate", 135, POOL | {"pointer": "0x10"}),
    ]
)
OLDER = """\
{ "kind":"replay", "uid":7, "timestamp":10, "event": "version", "payload": { "major":0, "minor":3, "patch":3 } }
{ "kind":"replay", "uid":7, "timestamp":11, "event": "makeMemoryResource", "payload": { "name": "HOST" }, "result": "0x1" }
{ "kind":"replay", "uid":7, "timestamp":12, "event": "makeAllocator", "payload": { "allocator_name":"pool" } }
{ "kind":"replay", "uid":7, "timestamp":13, "event": "makeAllocator", "payload": { "allocator_name":"pool" }, "result": { "allocator_ref":"0x2" } }
{ "kind":"replay", "uid":7, "timestamp":14, "event": "allocate", "payload": { "allocator_ref": "0x2", "size": 134 } }
{ "kind":"replay", "uid":7, "timestamp":15, "event": "allocate", "payload": { "allocator_ref": "0x2", "size": 134 }, "result": { "memory_ptr": "0x10" } }
{ "kind":"replay", "uid":7, "timestamp":16, "event": "deallocate", "payload": { "allocator_ref": "0x2", "memory_ptr": "0x10" } }
"""  # noqa: E501 - as the tool writes them


def test_an_umpire_log_is_read_operation_by_operation(tmp_path):
    trace = open_source(written(tmp_path, UMPIRE))
    assert rows(trace) == [
        ("malloc", 0, 128, 100),
        ("malloc", 1, 64, 110),
        ("realloc", 0, 256, 133),
        ("malloc", 2, 8, 141),
        ("free", 1, 0, 142),
    ]
    host, pool = Site("HOST", "", 0), Site("pool", "", 0)
    assert sites(trace) == [host, pool, host, host, None]
    known = {"assumed thread": "0", "assumed domain": "libc", "dropped frees": "1"}
    assert trace.metadata.origin.texts() == {"source": "umpire", "file": "log"} | known


def test_an_older_umpire_log_is_read_from_the_lines_with_results(tmp_path):
    trace = open_source(written(tmp_path, OLDER))
    assert rows(trace) == [("malloc", 0, 134, 15), ("free", 0, 0, 16)]
    assert sites(trace) == [Site("pool", "", 0), None]


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "{",
        "[1]",
        '{"category":"operation"}',
        operation("allocate", 1, {"pointer": "0x10"}, {"size": 1}),
        operation("allocate", 1, HOST | {"pointer": "0x10"}, {"size": -1}),
        operation("allocate", 1, HOST | {"pointer": "0x1000000000000"}, {"size": 1}),
        operation("reallocate", 1, HOST | {"new_ptr": "0x10"}),
    ],
)
def test_a_broken_line_of_umpire_is_refused_with_its_number(tmp_path, line):
    assert refusal(written(tmp_path, f"{UMPIRE}{line.strip()}\n")).startswith("line 15: ")
    lenient = open_source(tmp_path / "log", lenient=True)
    assert len(rows(lenient)) == 5
    assert lenient.metadata.origin.texts()["dropped lines"] == "1"


def test_an_umpire_reallocate_to_no_bytes_is_a_free(tmp_path):
    log = UMPIRE + "".join(
        [
            operation("reallocate", 150, HOST | {"current_ptr": "0x20"}, {"size": 0}, "HOST"),
            operation("deallocate", 151, HOST | {"pointer": "0x20"}),
            operation("allocate", 152, HOST | {"pointer": "0x77"}, {"size": 0}),
            operation("reallocate", 153, HOST | {"new_ptr": "0x77"}, {}, "HOST"),
            operation("allocate", 160, HOST | {"pointer": "0x20"}, {"size": 32}),
        ]
    )
    trace = open_source(written(tmp_path, log))
    assert rows(trace)[5:] == [("free", 0, 0, 153), ("malloc", 0, 32, 160)]
    assert "missing frees" not in trace.metadata.origin.texts()


@pytest.mark.parametrize("name", ["t.replay", "t.yaml", "t.csv", "t.rep", "t.mtrace", "t.heaptrack", "t.parquet"])
def test_brackets_nested_too_deeply_are_refused_in_one_sentence(tmp_path, name):
    path = written(tmp_path, "[" * 400_000, name)
    with pytest.raises(ReplayError) as caught:
        rows(open_source(path))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    "broken",
    [
        "[" * 400_000,
        '{"category":"operation","name":"x","timestamp":1e999}',
        '{"category":"operation","name":"x","timestamp":9223372036854775808}',
        '{"category":"operation","name":"x","timestamp":%s}' % ("9" * 5000),
        '{"category":"operation","name":"allocate","timestamp":1,"string_args":{"allocator_ref":"0x1","pointer":"0x5"},'
        '"numeric_args":{"size":1e999}}',
    ],
    ids=["nesting", "infinite time", "time past 63 bits", "time of 5000 digits", "infinite size"],
)
def test_json_values_that_a_trace_cannot_have_are_unknown_lines(tmp_path, broken):
    path = written(tmp_path, UMPIRE + broken + "\n")
    assert refusal(path).startswith("line 15: ")
    lenient = open_source(path, lenient=True)
    assert len(rows(lenient)) == 5
    assert lenient.metadata.origin.texts()["dropped lines"] == "1"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.replay", "SQLite format 3\0\1\n" * 5),
        ("t.replay", "[" * 400_000),
        ("t.heaptrack", "v 10400 3\nhello\n"),
        ("t.rep", "1\n1\n1\n1\nhello\n"),
    ],
)
def test_lenient_reading_that_leaves_nothing_is_refused_and_not_suggested(tmp_path, name, text):
    path = written(tmp_path, text, name)
    assert "--lenient" not in refusal(path)
    with pytest.raises(TraceError, match="no event remains: "):
        rows(open_source(path, lenient=True))


RAW = """v 10400 3
x 6 /tmp/h
X ./h
I 1000 5e298d
m 1 -
m 1 x 561f775ea000 0 688
t 561f775eb161 0
+ 65 1 561f9cdd71d0
c a
+ 10 1 561f9cdd7360
- 561f9cdd71d0
R 3b7
c 14
- 561f9cdd7360
- 561f9cdd0000
"""
INTERPRETED = """v 10400 3
X ./h
s 4 main
s 3 h.c
s c operator new
s 1b operator new(unsigned long)
s 5 libso
i 100 5 1 2 5
t 1 0
i 200 5 4
t 2 1
i 300 5
t 3 1
a 64 2
+ 0
+ 0
c 5
a 8 3
+ 1
- 0
- 1
- 1
- 0
c 9
# strings: 5
"""


def test_a_raw_heaptrack_file_is_read_by_addresses(tmp_path):
    trace = open_source(written(tmp_path, RAW))
    assert rows(trace) == [
        ("malloc", 0, 0x65, 0),
        ("malloc", 1, 0x10, 10_000_000),
        ("free", 0, 0, 15_000_000),
        ("free", 1, 0, 20_000_000),
    ]
    assert set(sites(trace)) == {None}
    origin = trace.metadata.origin.texts()
    assert (origin["dropped frees"], origin["assumed reallocs"]) == ("1", "a free and a malloc")
    assert "assumed frees" not in origin
    assert next(events.address.tolist() for events in trace.batches() if events.rows)[0] == 0x561F9CDD71D0


def test_an_interpreted_heaptrack_file_frees_the_youngest_of_a_kind_and_has_call_sites(tmp_path):
    trace = open_source(written(tmp_path, INTERPRETED))
    assert rows(trace) == [
        ("malloc", 0, 100, 0),
        ("malloc", 1, 100, 2_500_000),
        ("malloc", 2, 8, 5_000_000),
        ("free", 1, 0, 5_800_000),
        ("free", 2, 0, 6_600_000),
        ("free", 0, 0, 8_200_000),
    ]
    main, library = Site("main", "h.c", 5), Site("0x300", "libso", 0)
    assert sites(trace) == [main, main, library, None, None, None]
    assert trace.metadata.origin.texts()["assumed frees"] == "of the youngest block with that size and stack"
    assert trace.metadata.origin.texts()["dropped frees"] == "1"


def test_older_heaptrack_files_have_strings_without_their_length(tmp_path):
    older = INTERPRETED.replace("v 10400 3", "v 10100 2")
    for line in INTERPRETED.splitlines():
        if line.startswith("s "):
            older = older.replace(line + "\n", f"s {line.split(' ', 2)[2]}\n")
    assert rows(open_source(written(tmp_path, older))) == rows(open_source(written(tmp_path, INTERPRETED, "new")))
    assert sites(open_source(written(tmp_path, older)))[0] == Site("main", "h.c", 5)
    first = "v 10000\n+ 10 0 abc\n- abc\n"
    assert [row[:3] for row in rows(open_source(written(tmp_path, first)))] == [("malloc", 0, 16), ("free", 0, 0)]


def test_a_newer_heaptrack_format_is_refused(tmp_path):
    newer = INTERPRETED.replace("v 10400 3", "v 20000 4")
    assert refusal(written(tmp_path, newer)) == (
        "has heaptrack's file format 4; this version of replay reads up to 3: get a newer one"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("+ 7", "line 26: '+ 7' is not a line of a heaptrack file"),
        ("+ 1 2", "line 26: '+ 1 2' is not a line"),
        ("+ x", "line 26: '+ x' is not a line"),
        ("t", "line 26: 't' is not a line"),
        ("hello", "line 26: 'hello' is not a line"),
        ("q 1", "line 26: 'q 1' is not a line"),
        ("a 800000000001 1", "line 26: the size is out of range"),
    ],
)
def test_a_broken_line_of_heaptrack_is_refused_with_its_number(tmp_path, line, message):
    path = written(tmp_path, f"{INTERPRETED}{line}\n")
    assert refusal(path).startswith(message)
    if "size" not in message:
        lenient = open_source(path, lenient=True)
        assert len(rows(lenient)) == 6
        assert lenient.metadata.origin.texts()["dropped lines"] == "1"


def test_a_heaptrack_file_is_read_equally_in_pieces_of_any_size(tmp_path, monkeypatch):
    body = "".join(f"a {n + 1:x} 1\n+ {n:x}\n+ 0\n- 0\nc {n:x}\n- {n // 2:x}\n" for n in range(2000))
    path = written(tmp_path, f"v 10400 3\ns 4 main\ni 1 1 1\nt 1 0\n{body}")
    whole = rows(open_source(path))
    monkeypatch.setattr("replay.sources._logs.lines._PIECE_BYTES", 333)
    assert rows(open_source(path)) == whole
