"""Threads of object programs: what they request, when they run, and how real interpreters compare."""

import json

import numpy as np
import pytest
import yaml
from object_programs import events, object_program
from thread_programs import raising_thread_program, random_thread_program

from replay.config.stack import Costs
from replay.objects import load_objects, threads
from replay.objects.loop import CALL_NS
from replay.objects.running import run_program
from replay.objects.tracing import ObjectTrace
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import in_threads, simulate_threads, verify_objects

INTERPRETERS = find_object_oracles()
MALLOC, CALLOC, REALLOC, FREE = Op.MALLOC, Op.CALLOC, Op.REALLOC, Op.FREE
RAW, MEM, OBJ = Domain.RAW, Domain.MEM, Domain.OBJ
MS = 10**6


def run(*main, functions=None, release=(3, 12), **settings):
    """The batches of a program as one: events with their threads and times; and how the threads spent their time."""
    batches = list(run_program(object_program({"main": list(main), "functions": functions or {}, **settings}), release))
    joined = [np.concatenate([getattr(batch, name) for batch in batches]) for name in ("events", "threads", "times_ns")]
    return *joined, batches[-1].thread_times


def by_thread(*main, functions, release):
    """The events of a program as (thread, op, domain, size, block)."""
    program = object_program({"main": list(main), "functions": functions})
    found, threads, _ = simulate_threads(program, release)
    rows = zip(threads.tolist(), found.tolist(), strict=True)
    return [(thread, Op(op), Domain(domain), size, block) for thread, (op, domain, size, block) in rows]


# Sequences computed by hand

IDLE = {"idle": {"do": [{"bind": {"x": 0}}]}}


def test_a_thread_of_3_12_has_a_callback_that_it_frees_first_and_a_state_that_it_frees_last():
    assert by_thread({"start": "idle"}, functions=IDLE, release=(3, 12)) == [
        (0, MALLOC, OBJ, 56, 1),  # the tuple of function and arguments, which a free list keeps
        (0, MALLOC, RAW, 32, 2),  # what the thread starts with
        (0, CALLOC, RAW, 288, 3),  # its state
        (0, MALLOC, RAW, 16, 4),  # the callback for the C library
        (0, MALLOC, OBJ, 32, 5),  # the number of the thread
        (0, FREE, OBJ, 32, 5),
        (1, FREE, RAW, 16, 4),
        (1, FREE, RAW, 32, 2),
        (1, FREE, RAW, 288, 3),
    ]


def test_a_thread_of_3_15_has_a_handle_and_no_callback():
    assert by_thread({"start": "idle"}, functions=IDLE, release=(3, 15)) == [
        (0, MALLOC, OBJ, 64, 1),
        (0, CALLOC, RAW, 72, 2),  # the handle
        (0, MALLOC, RAW, 48, 3),
        (0, CALLOC, RAW, 1104, 4),
        (0, MALLOC, OBJ, 32, 5),
        (0, FREE, OBJ, 32, 5),
        (1, FREE, RAW, 48, 3),
        (1, FREE, RAW, 1104, 4),
        (1, FREE, RAW, 72, 2),
    ]


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ((3, 8), [(MALLOC, OBJ, 40), (MALLOC, RAW, 32), (FREE, RAW, 32), (FREE, OBJ, 40)]),
        ((3, 13, 0), [(MALLOC, OBJ, 56), (MALLOC, RAW, 32), (FREE, RAW, 32), (FREE, OBJ, 56)]),
        ((3, 14), [(MALLOC, OBJ, 56), (FREE, OBJ, 56)]),
    ],
)
def test_a_lock_has_a_block_of_the_c_library_up_to_3_13_0(release, expected):
    found = events(release, {"bind": {"l": {"lock": []}}}, {"acquire": "l"}, {"release": "l"}, {"drop": ["l"]})
    assert [each[:3] for each in found if each[2] in (32, 40, 56)] == expected


def test_a_queue_of_3_12_deletes_the_first_items_of_its_list_when_they_are_more_than_half():
    put = {"repeat": 20, "as": "i", "do": [{"put": "i", "to": "q"}]}
    take = {"repeat": 20, "as": "i", "do": [{"bind": {"x": {"take": "q"}}}]}
    found = events((3, 12), {"bind": {"q": {"queue": []}}}, put, take)
    assert [each[:3] for each in found if each[1] == MEM] == [
        (MALLOC, MEM, 32), (REALLOC, MEM, 64), (REALLOC, MEM, 128), (REALLOC, MEM, 192),
        (MALLOC, MEM, 88), (REALLOC, MEM, 128), (FREE, MEM, 88),  # eleven of twenty; they take more than 64 bytes
        (REALLOC, MEM, 64), (REALLOC, MEM, 32), (FREE, MEM, 32),
    ]  # fmt: skip


def test_a_queue_of_3_13_doubles_and_halves_its_array():
    put = {"repeat": 20, "as": "i", "do": [{"put": "i", "to": "q"}]}
    take = {"repeat": 20, "as": "i", "do": [{"bind": {"x": {"take": "q"}}}]}
    found = events((3, 13), {"bind": {"q": {"queue": []}}}, put, take)
    assert [each[:3] for each in found if each[1] == MEM] == [
        (CALLOC, MEM, 64), (CALLOC, MEM, 128), (FREE, MEM, 64), (CALLOC, MEM, 256), (FREE, MEM, 128),
        (CALLOC, MEM, 128), (FREE, MEM, 256), (CALLOC, MEM, 64), (FREE, MEM, 128), (FREE, MEM, 64),
    ]  # fmt: skip


def test_a_queue_of_3_13_hands_items_to_a_waiting_thread_past_its_array():
    functions = {"reader": {"parameters": ["q"], "do": [{"bind": {"x": {"take": "q"}}}]}}
    main = [{"bind": {"q": {"queue": []}}}, {"start": "reader", "with": ["q"]}, {"sleep": "1ms"}]
    many = {"repeat": 9, "as": "i", "do": [{"put": "i", "to": "q"}]}
    waiting = by_thread(*main, many, functions=functions, release=(3, 13))
    assert [each for each in waiting if each[1:4] == (CALLOC, MEM, 128)] == []


# Time and the GIL

COUNT = {"repeat": 1000, "as": "i", "do": [{"bind": {"x": {"letters": 20}}}]}
COUNTING = {"count": {"parameters": ["n"], "do": [COUNT, {"return": "n"}]}}


def starts(threads, function="count"):
    return [{"start": function, "with": [number]} for number in range(threads)]


def spent_ns(times):
    return [sum(each[times[0]._fields.index("running_ns") :]) for each in times]


def test_a_call_of_an_allocator_takes_the_default_cost_of_a_stack():
    assert Costs().call == CALL_NS


def test_times_of_threads_add_up_and_threads_never_run_at_the_same_time():
    _, _, moments, times = run(*starts(3), COUNT, functions=COUNTING, switch_interval="100us")
    assert spent_ns(times) == [each.end_ns - each.start_ns for each in times]
    busy = sum(each.running_ns + each.allocating_ns + each.collecting_ns for each in times)
    assert busy == max(each.end_ns for each in times)
    assert (np.diff(moments) >= 0).all()


@pytest.mark.parametrize("release", [(3, 8), (3, 12), (3, 14)])
def test_each_thread_does_the_same_whether_and_where_it_is_interrupted(release):
    found = []
    for interval in ("1000s", "100us", "7us"):
        rows, threads, _, _ = run(*starts(3), COUNT, functions=COUNTING, release=release, switch_interval=interval)
        switches = np.count_nonzero(np.diff(threads))
        assert switches == 3 if interval == "1000s" else switches > 10
        found.append([rows[threads == thread][["op", "domain", "requested"]].tolist() for thread in range(4)])
        texts = [sum(requested == (61 if release >= (3, 12) else 69) for *_, requested in each) for each in found[-1]]
        assert texts == [1000] * 4
    if release == (3, 12):  # others share frames or free lists of integers
        assert found[0] == found[1] == found[2]


def test_a_waiting_thread_gets_the_gil_after_the_switch_interval_and_the_next_check():
    work = {"busy": {"do": [{"work": "20ms"}]}}
    *_, times = run({"start": "busy"}, {"work": "20ms"}, functions=work)
    main, other = times
    assert other.waiting_ns == pytest.approx(4 * 5 * MS, abs=MS / 100)
    assert main.waiting_ns == pytest.approx(4 * 5 * MS, abs=MS / 100)  # shortly before its end, it has to wait again
    for each in times:
        assert each.end_ns == pytest.approx(40 * MS, abs=MS / 100)
        assert each.running_ns == pytest.approx(20 * MS, abs=MS / 100)


def test_a_switch_of_the_holder_lets_waiting_threads_wait_for_another_interval():
    work = {"busy": {"do": [{"work": "12ms"}]}}
    *_, times = run({"start": "busy"}, {"start": "busy"}, functions=work)
    # The second thread begins to wait shortly before the first one takes the GIL from main.
    assert [round(each.waiting_ns / MS, 2) for each in times] == [0, 5, 12]
    assert [round(each.end_ns / MS, 2) for each in times] == [0, 10 + 5 + 2, 10 + 5 + 2 + 7]


def test_a_thread_that_sleeps_leaves_the_gil_to_others():
    work = {"busy": {"do": [{"work": "4ms"}]}}
    *_, (main, other) = run({"start": "busy"}, {"sleep": "10ms"}, functions=work)
    assert main.blocked_ns == 10 * MS
    assert other.blocked_ns == 0
    assert other.end_ns < 5 * MS
    assert main.end_ns == pytest.approx(10 * MS, abs=MS / 100)


def test_time_in_collections_is_counted_apart():
    cycles = {"repeat": 3000, "as": "i", "do": [{"bind": {"n": {"new": "N"}}}, {"set": {"n.me": "n"}}]}
    *_, times = run({"start": "make"}, functions={"make": {"do": [cycles]}}, classes={"N": {"slots": ["me"]}})
    assert times[1].collecting_ns > 0.1 * times[1].running_ns
    assert times[0].collecting_ns == 0
    assert spent_ns(times) == [each.end_ns - each.start_ns for each in times]


def test_the_trace_has_the_threads_and_their_ends_and_can_be_read_again():
    program = object_program({"main": starts(2), "functions": COUNTING})
    trace = ObjectTrace(program, 1)
    assert trace.metadata.thread_times == ()
    for _ in range(2):
        (batch,) = trace.batches()
        assert np.unique(batch.thread).tolist() == [0, 1, 2]
        assert batch.thread[batch.op == Op.THREAD_END].tolist() == [1, 2]
        assert [each.function for each in trace.metadata.thread_times] == ["main", "count", "count"]


def test_a_program_with_more_events_than_a_batch_is_continued():
    long = {"count": {"parameters": ["n"], "do": [{"repeat": 60_000, "as": "i", "do": COUNT["do"]}]}}
    rows, threads, moments, _ = run(*starts(2), functions=long, switch_interval="100us")
    assert len(rows) > 3 * 65_536
    assert (np.diff(moments) >= 0).all()
    for thread in (1, 2):
        allocated = rows["requested"][(threads == thread) & (rows["op"] == MALLOC)]
        assert np.count_nonzero(allocated == 61) == 60_000


@pytest.mark.parametrize("release", [(3, 8), (3, 11), (3, 13), (3, 15)])
def test_blocks_are_freed_once_whichever_thread_frees_them(release):
    moved = 0
    for seed in range(8):
        live = {}
        for batch in run_program(random_thread_program(seed), release):
            for thread, (op, domain, block, *_) in zip(batch.threads.tolist(), batch.events.tolist(), strict=True):
                if op in (Op.MALLOC, Op.CALLOC):
                    assert block not in live
                    live[block] = domain, thread
                elif op == Op.REALLOC:
                    assert live[block][0] == domain
                elif op == Op.FREE:
                    made_in, owner = live.pop(block)
                    assert made_in == domain
                    moved += owner != thread
    assert moved > 100


def test_compiled_and_plain_code_run_threads_alike(monkeypatch):
    short = {"count": {"parameters": ["n"], "do": [{**COUNT, "repeat": 30}, {"return": "n"}]}}
    compiled = run(*starts(3), {"collect": 2}, functions=short, switch_interval="7us")
    monkeypatch.setattr(threads, "run_slice", threads.run_slice.py_func)
    plain = run(*starts(3), {"collect": 2}, functions=short, switch_interval="7us")
    assert all((one == other).all() for one, other in zip(compiled[:3], plain[:3], strict=True))
    assert compiled[3] == plain[3]


# Mistakes


def mistake(*main, functions=None):
    with pytest.raises(WorkloadError) as error:
        run(*main, functions=functions)
    return str(error.value)


def test_a_deadlock_names_each_thread_and_what_it_waits_for(tmp_path, replay):
    document = {
        "kind": "objects",
        "functions": {"worker": {"parameters": ["l"], "do": [{"acquire": "l"}]}},
        "main": [
            {"bind": {"l": {"lock": []}, "q": {"queue": []}}},
            {"acquire": "l"},
            {"start": "worker", "with": ["l"]},
            {"bind": {"x": {"take": "q"}}},
        ],
    }
    path = tmp_path / "stuck.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    line = len(path.read_text().splitlines()) - 2
    code, _, err = replay("run", path, "-a", "cpython-3.12", "--no-reference")
    assert code == 2
    assert f"{path}:{line}: main.3: deadlock: main waits for an item of a queue" in err
    assert f"{path}:7: functions.worker.do.0: thread 1 (worker) waits for a lock" in err


def test_a_thread_that_waits_after_the_end_of_main_is_a_deadlock():
    functions = {"worker": {"parameters": ["q"], "do": [{"bind": {"x": {"take": "q"}}}]}}
    main = [{"bind": {"q": {"queue": []}}}, {"start": "worker", "with": ["q"]}]
    what = "deadlock: thread 1 (worker) waits for an item of a queue, and main has ended"
    assert mistake(*main, functions=functions) == f"functions.worker.do.0: {what}"


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ({"release": "l"}, "no thread holds the lock"),
        ({"acquire": "q"}, "expected a lock"),
        ({"release": "q"}, "expected a lock"),
        ({"put": 1, "to": "l"}, "expected a queue"),
        ({"bind": {"x": {"take": "l"}}}, "expected a queue"),
    ],
)
def test_a_wrong_use_of_locks_and_queues_is_refused(statement, what):
    assert mistake({"bind": {"l": {"lock": []}, "q": {"queue": []}}}, statement) == f"main.1: {what}"


def test_a_mistake_of_a_thread_names_its_statement():
    functions = {"worker": {"parameters": ["n"], "do": [{"bind": {"x": {"length": "n"}}}]}}
    assert mistake({"start": "worker", "with": [1]}, functions=functions).startswith("functions.worker.do.0: expected")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("main: [{start: f}]", ":2: main.0: unknown function 'f'"),
        ("functions: {f: {do: [{work: 1ms}]}}\nmain: [{start: f, with: [1]}]", ":3: main.0: f has 0 parameters"),
        ("main: [{sleep: soon}]", ":2: main.0.sleep: 'soon' is not a time; write it like 20 ms"),
        ("switch_interval: 0ms\nmain: [{work: 1ms}]", ":2: switch_interval: '0ms' should be greater than 0"),
        ("main: [{bind: {l: {lock: [1]}}}]", ":2: main.0.bind.l.lock: [1] should have at most 0 items"),
        ("main: [{bind: {sleep: 1}}]", ":2: main.0.bind.sleep: 'sleep' has a meaning in Python"),
    ],
)
def test_a_mistake_in_the_text_names_file_line_and_key(tmp_path, text, message):
    path = tmp_path / "program.yaml"
    path.write_text(f"kind: objects\n{text}\n")
    with pytest.raises(WorkloadError) as error:
        load_objects(path)
    assert f"{path}{message}" in str(error.value)


# Commands


def test_run_shows_how_threads_spent_their_time(replay):
    code, out, _ = replay("run", "thread-handover", "-a", "cpython-3.12", "--no-reference")
    assert code == 0
    assert "Threads: time" in out
    assert "3 work" in out
    code, out, _ = replay("run", "thread-handover", "-a", "cpython-3.12", "--no-reference", "--json")
    found = json.loads(out)["threads"]
    assert [each["function"] for each in found["each"]] == ["main", "work", "work", "work"]
    for kind, total in found["total"].items():
        assert total == sum(each[kind] for each in found["each"])


def test_generate_prints_how_threads_spent_their_time(replay, tmp_path):
    code, out, _ = replay("generate", "thread-handover", "-o", tmp_path / "trace.parquet")
    assert code == 0
    assert "Threads: time" in out
    code, out, _ = replay("generate", "records", "-o", tmp_path / "other.parquet")
    assert "Threads" not in out


# Real interpreters


def test_events_without_the_gil_are_moved_next_to_the_others_of_their_thread():
    program = object_program({"main": [{"start": "idle"}, {"bind": {"x": {"letters": 50}}}], "functions": IDLE})
    found, threads, _ = simulate_threads(program, (3, 12))
    assert threads.tolist() == [0] * 8 + [1] * 3
    rows = [*range(6), 8, 6, 7, 9, 10]  # the callback is freed two events before
    assert (in_threads(found[rows], 5 * threads[rows], (3, 12)) == in_threads(found, threads, (3, 12))).all()


@pytest.mark.system
@pytest.mark.skipif(not INTERPRETERS, reason="no libpython from 3.8 on on this machine: see `replay verify --list`")
@pytest.mark.parametrize("version", INTERPRETERS)
@pytest.mark.parametrize("write", [random_thread_program, raising_thread_program])
def test_random_programs_with_threads_request_the_memory_that_real_interpreters_request(version, write):
    compared = 0
    for seed in range(12):
        try:
            agreement = verify_objects(write(seed), INTERPRETERS[version])
        except WorkloadError as error:  # a function of critical length
            if "exact length" not in str(error):
                raise
            continue
        assert agreement.difference == "", f"seed {seed}"
        compared += 1
    assert compared >= 9


@pytest.mark.parametrize(("release", "frames"), [((3, 11), 2), ((3, 14), 2)])
def test_the_first_call_of_a_thread_has_no_caller_whose_frame_object_is_created(release, frames):
    handled = {"try": [{"call": "fail"}], "except": "KeyError", "handle": [{"bind": {"x": 0}}]}
    functions = {"fail": {"do": [{"raise": "KeyError"}]}, "work": {"parameters": ["done"], "do": [handled]}}
    functions["work"]["do"].append({"release": "done"})
    main = (
        {"bind": {"done": {"lock": []}}},
        {"acquire": "done"},
        {"start": "work", "with": ["done"]},
        {"acquire": "done"},
    )
    found = events(release, *main, functions=functions)
    base = 136 if release == (3, 11) else 168
    sizes = base + 8 * (0 + 1), base + 8 * (2 + 4)
    assert sum(op == MALLOC and size in sizes for op, _, size, _ in found) == frames
