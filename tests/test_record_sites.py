"""Call sites of recorded calls: function, file and line equal those of CPython, in all kinds of programs."""

import ctypes
import inspect
import operator
import os
import sys
import textwrap
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ALLOCATING_PROGRAM, PYTHON_APIS, events_in, python_api, record, run_to_the_last

import replay
from replay.recorder import tap
from replay.recorder.ring import Ring
from replay.trace import NO_SITE, Domain, Events, Op, Site
from replay.verification.recordings import verify_recording

pytestmark = pytest.mark.system

if reason := tap.obstacle(sites=True):
    pytest.skip(reason, allow_module_level=True)

MALLOC, FREE = python_api(Domain.OBJ, "Malloc"), python_api(Domain.OBJ, "Free")


def take(size):
    """An allocation of this size, by this function."""
    FREE(MALLOC(size))


def events_of(path) -> tuple[Events, tuple[Site, ...]]:
    return events_in(path), replay.open_source(path).metadata.sites


def sites_by_size(path, sizes) -> dict[int, list[Site | None]]:
    """The call sites of all allocations of these sizes."""
    events, sites = events_of(path)
    asked = {size: np.flatnonzero((events.size == size) & (events.op <= Op.REALLOC)) for size in sizes}
    return {
        size: [None if events.site[row] == NO_SITE else sites[events.site[row]] for row in rows]
        for size, rows in asked.items()
    }


def line_of(function, text) -> Site:
    """The site of the one line of a function that holds that text."""
    lines, first = inspect.getsourcelines(function)
    (at,) = [number for number, line in enumerate(lines) if text in line]
    return Site(function.__qualname__, __file__, first + at)


def recorded(tmp_path, source, *options, name="program.py"):
    """The recording of a program, and the path of the program."""
    path = tmp_path / name
    path.write_text(textwrap.dedent(source))
    done = record("--sites", *options, path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "trace.parquet", str(path)


@pytest.mark.parametrize("size", [331, 33_331, 3_333_331])
@pytest.mark.parametrize("domain", PYTHON_APIS)
def test_each_kind_of_call_has_its_line(tmp_path, domain, size):
    malloc, calloc, realloc, free = (python_api(domain, verb) for verb in ("Malloc", "Calloc", "Realloc", "Free"))

    def work():
        block = malloc(size)
        block = realloc(block, 2 * size)
        zeroed = calloc(7, size)
        nothing = realloc(None, size + 2)
        for each in (block, zeroed, nothing):
            free(each)

    with replay.record(tmp_path / "trace.parquet", sites=True):
        work()
    found = sites_by_size(tmp_path / "trace.parquet", [size, 2 * size, 7 * size, size + 2])
    assert found == {
        size: [line_of(work, "malloc(size)")],
        2 * size: [line_of(work, "realloc(block")],
        7 * size: [line_of(work, "calloc(7")],
        size + 2: [line_of(work, "realloc(None")],
    }


def test_frees_and_marks_have_no_site(tmp_path):
    with replay.record(tmp_path / "trace.parquet", sites=True):
        take(4_441)
        replay.mark("done")
    events, _ = events_of(tmp_path / "trace.parquet")
    assert (events.site[events.op > Op.REALLOC] == NO_SITE).all()
    assert (events.op == Op.FREE).sum() > 0


def test_without_sites_there_is_no_column(tmp_path):
    with replay.record(tmp_path / "trace.parquet"):
        take(4_441)
    events, sites = events_of(tmp_path / "trace.parquet")
    assert (events.site, sites) == (None, ())


class Shop:
    def sell(self):
        take_here(50_001)

    @classmethod
    def open(cls):
        take_here(50_003)

    @property
    def price(self):
        take_here(50_005)
        return 1


def take_here(size):
    """This frame is the innermost one of the C function that it calls last."""
    MALLOC(size)


def numbers(limit):
    for number in range(limit):
        MALLOC(60_001 + number)
        yield number


def deep(levels):
    if levels:
        return deep(levels - 1)
    return MALLOC(70_001)


async def waits():
    MALLOC(70_003)


def call_all():
    a_lambda = lambda: MALLOC(80_001)  # noqa: E731
    MALLOC(40_001)
    Shop().sell()
    Shop.open()
    _ = Shop().price
    for _ in numbers(3):
        take(61_000)
    deep(50)
    with pytest.raises(StopIteration):
        waits().send(None)
    a_lambda()
    _ = [MALLOC(80_003) for _ in range(2)]
    sorted([3, 1], key=lambda number: MALLOC(80_005 + number))
    _ = list(map(MALLOC, [80_021]))


def test_methods_generators_recursion_coroutines_and_lambdas(tmp_path):
    with replay.record(tmp_path / "trace.parquet", sites=True):
        call_all()
    comprehension = line_of(call_all, "MALLOC(80_003)")
    if sys.version_info < (3, 12):  # since then, comprehensions are part of their function
        comprehension = comprehension._replace(function="call_all.<locals>.<listcomp>")
    expected = {
        40_001: [line_of(call_all, "MALLOC(40_001)")],
        50_001: [line_of(take_here, "MALLOC(size)")],
        50_003: [line_of(take_here, "MALLOC(size)")],
        50_005: [line_of(take_here, "MALLOC(size)")],
        60_001: [line_of(numbers, "MALLOC")],
        60_003: [line_of(numbers, "MALLOC")],
        61_000: [line_of(take, "FREE(MALLOC")] * 3,
        70_001: [line_of(deep, "MALLOC")],
        70_003: [line_of(waits, "MALLOC")],
        80_001: [line_of(call_all, "MALLOC(80_001)")._replace(function="call_all.<locals>.<lambda>")],
        80_003: [comprehension] * 2,
        80_006: [line_of(call_all, "MALLOC(80_005")._replace(function="call_all.<locals>.<lambda>")],
        80_021: [line_of(call_all, "MALLOC, [80_021]")],
    }
    assert sites_by_size(tmp_path / "trace.parquet", expected) == expected


def test_each_thread_has_its_own_frames(tmp_path):
    together, rounds = threading.Barrier(3), 300

    def first():
        together.wait()
        for _ in range(rounds):
            FREE(MALLOC(90_001))

    def second():
        together.wait()
        for _ in range(rounds):
            FREE(MALLOC(90_003))

    threads = [threading.Thread(target=work) for work in (first, second)]
    with replay.record(tmp_path / "trace.parquet", sites=True):
        for thread in threads:
            thread.start()
        together.wait()
        for thread in threads:
            thread.join()
    found = sites_by_size(tmp_path / "trace.parquet", [90_001, 90_003])
    assert set(found[90_001]) == {line_of(first, "MALLOC")}
    assert set(found[90_003]) == {line_of(second, "MALLOC")}
    assert len(found[90_001]) == len(found[90_003]) == rounds


def test_raw_calls_have_a_site_with_the_gil_and_none_without(tmp_path):
    """One thread keeps the GIL busy; its frames must not be taken for those of the others."""
    with_gil, without_gil = python_api(Domain.RAW, "Malloc"), python_api(Domain.RAW, "Malloc", ctypes.CDLL(None))
    done = threading.Event()

    def busy():
        while not done.is_set():
            [None] * 9  # noqa: B018

    def work():
        for _ in range(300):
            without_gil(90_011)
            with_gil(90_013)

    threads = [threading.Thread(target=busy), threading.Thread(target=work)]
    with replay.record(tmp_path / "trace.parquet", sites=True):
        for thread in threads:
            thread.start()
        threads[1].join()
        done.set()
        threads[0].join()
    found = sites_by_size(tmp_path / "trace.parquet", [90_011, 90_013])
    assert found == {90_011: [None] * 300, 90_013: [line_of(work, "with_gil(90_013)")] * 300}


def make_bytes():
    return bytes(50_200)


@pytest.mark.parametrize("module", ["_xxsubinterpreters", "_interpreters"])
def test_calls_of_another_interpreter_have_no_site(tmp_path, module):
    interpreters = pytest.importorskip(module)
    inside = interpreters.create()
    with replay.record(tmp_path / "trace.parquet", sites=True):
        outside = make_bytes()
        interpreters.run_string(inside, "kept = bytes(50_300)")
    interpreters.destroy(inside)
    header = sys.getsizeof(b"")
    found = sites_by_size(tmp_path / "trace.parquet", [50_200 + header, 50_300 + header])
    assert found == {50_200 + header: [line_of(make_bytes, "return")], 50_300 + header: [None]}
    assert len(outside) == 50_200


def test_lines_are_right_while_a_tracer_watches(tmp_path):
    def tracer(*_):
        return tracer

    with replay.record(tmp_path / "trace.parquet", sites=True):
        before = sys.gettrace()
        sys.settrace(tracer)
        take_here(50_401)
        sum(number for number in numbers(2))
        sys.settrace(before)
    found = sites_by_size(tmp_path / "trace.parquet", [50_401, 60_001, 60_002])
    where = line_of(numbers, "MALLOC")
    assert found == {50_401: [line_of(take_here, "MALLOC(size)")], 60_001: [where], 60_002: [where]}


NAMES = ["плато", "日本", "café", "📦", "f" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_letters(tmp_path, name):
    identifier = name if name.isidentifier() else "module"
    source = f"""
        import ctypes
        malloc = ctypes.pythonapi.PyObject_Malloc
        class {identifier}:
            def {identifier}(self):
                malloc(ctypes.c_size_t(50_021))
        {identifier}().{identifier}()
    """
    path, program = recorded(tmp_path, source, name=f"{name[:80]}.py")
    assert sites_by_size(path, [50_021]) == {50_021: [Site(f"{identifier}.{identifier}", program, 6)]}


def test_a_file_name_that_is_not_unicode_has_escapes(tmp_path):
    code = compile("\nMALLOC(50_031)", b"/no\xff/where.py", "exec")
    with replay.record(tmp_path / "trace.parquet", sites=True):
        exec(code, {"MALLOC": MALLOC})
    assert sites_by_size(tmp_path / "trace.parquet", [50_031]) == {50_031: [Site("<module>", r"/no\udcff/where.py", 2)]}


def test_file_names_of_a_subclass_of_str(tmp_path):
    class Name(str):
        __slots__ = ()

    with replay.record(tmp_path / "trace.parquet", sites=True):
        for size, name in ((50_041, Name("plain.py")), (50_043, Name("плато.py"))):
            exec(compile(f"MALLOC({size})", name, "exec"), {"MALLOC": MALLOC})
    found = sites_by_size(tmp_path / "trace.parquet", [50_041, 50_043])
    assert found == {50_041: [Site("<module>", "plain.py", 1)], 50_043: [Site("<module>", "плато.py", 1)]}


def test_freed_codes_are_not_confused_with_later_ones_at_the_same_address(tmp_path):
    """All have the same length, so that each has the address of the previous one."""
    rounds, addresses = 3_000, set()
    with replay.record(tmp_path / "trace.parquet", sites=True):
        for number in range(rounds):
            blank = "\n" * (number % 7)
            source = f"{blank}def f{number:04}(): FREE(MALLOC(20{number:04}))"
            code = compile(source, f"file{number:04}.py", "exec")
            space = {"FREE": FREE, "MALLOC": MALLOC}
            exec(code, space)
            function = space.popitem()[1]
            addresses.add(id(function.__code__))
            function()
            del code, space, function
    assert len(addresses) < rounds / 10
    sizes = range(200_000, 200_000 + rounds)
    assert sites_by_size(tmp_path / "trace.parquet", sizes) == {
        size: [Site(f"f{number:04}", f"file{number:04}.py", number % 7 + 1)] for number, size in enumerate(sizes)
    }


def test_codes_are_not_kept_alive(tmp_path):
    """The block of a code object is freed at the same moment as without the recorder."""
    with replay.record(tmp_path / "trace.parquet", sites=True):
        code, fresh = compile("MALLOC(50_051)", "dies.py", "exec"), compile("1", "never_run.py", "exec")
        exec(code, {"MALLOC": MALLOC})
        references, watched = sys.getrefcount(code), weakref.ref(code)
        assert references == sys.getrefcount(fresh)
        del code
        assert watched() is None
    assert sites_by_size(tmp_path / "trace.parquet", [50_051])[50_051] == [Site("<module>", "dies.py", 1)]


def test_a_code_that_is_being_deallocated_has_no_note(tmp_path):
    """The frame has the last reference; during its deallocation, a callback of a weak reference allocates without a
    frame."""

    class Watch(weakref.ref):
        __slots__ = ()
        grow = staticmethod(MALLOC)

    def call():
        function()

    space: dict = {}
    exec(compile("def function(): function.__code__ = other", "dies.py", "exec"), space)
    function = space["function"]
    space["other"] = take.__code__.replace(co_argcount=0)
    watch = Watch(function.__code__, operator.methodcaller("grow", 50_061))
    with replay.record(tmp_path / "trace.parquet", sites=True):
        call()
    assert watch() is None
    found = sites_by_size(tmp_path / "trace.parquet", [50_061])[50_061]
    assert found == [line_of(call, "function()")]


def test_notes_wrap_around_in_their_ring(tmp_path):
    """Each code has a name of 100,000 letters, so that its note is as long."""
    rounds = 2 * tap.NOTES_BYTES // 100_000 + 20
    with replay.record(tmp_path / "trace.parquet", sites=True):
        for number in range(rounds):
            exec(compile(f"MALLOC(300_000 + {number})", f"{number} " + "x" * 100_000, "exec"), {"MALLOC": MALLOC})
    found = sites_by_size(tmp_path / "trace.parquet", range(300_000, 300_000 + rounds))
    found = {size: [(site.function, site.file[:5], len(site.file)) for site in where] for size, where in found.items()}
    assert found == {
        300_000 + number: [("<module>", f"{number} xxxxx"[:5], 100_001 + len(str(number)))] for number in range(rounds)
    }


def test_a_note_that_never_fits_leaves_its_calls_without_a_site(tmp_path):
    with replay.record(tmp_path / "trace.parquet", sites=True):
        exec(compile("MALLOC(50_071)", "x" * tap.NOTES_BYTES, "exec"), {"MALLOC": MALLOC})
        take(50_073)
    found = sites_by_size(tmp_path / "trace.parquet", [50_071, 50_073])
    assert found == {50_071: [None], 50_073: [line_of(take, "MALLOC")]}


@pytest.mark.parametrize("every", [2, 1_000, 65_536])
def test_sampled_calls_are_those_in_which_a_multiple_of_the_bytes_falls(tmp_path, every):
    with replay.record(tmp_path / "trace.parquet", sites=every):
        kept = [bytes(number % 5_000) for number in range(20_000)]
        for size in (3, 100, 70_000, 0, 700_000):
            for domain in PYTHON_APIS:
                python_api(domain, "Free")(python_api(domain, "Malloc")(size))
    events, _ = events_of(tmp_path / "trace.parquet")
    for domain in PYTHON_APIS:
        calls = (events.op <= Op.REALLOC) & (events.domain == domain)
        total = np.cumsum(events.size[calls])
        chosen = total // every > (total - events.size[calls]) // every
        assert (chosen == (events.site[calls] != NO_SITE)).all()
        assert chosen.any()
        assert not chosen.all()
    assert len(kept) == 20_000


def test_the_origin_has_the_sampling_of_call_sites(tmp_path):
    for number, (sites, printed) in enumerate(
        [(True, "every call"), (65_536, "one call in 65,536 bytes"), (False, None)]
    ):
        with replay.record(tmp_path / f"{number}.parquet", sites=sites):
            pass
        assert replay.open_source(tmp_path / f"{number}.parquet").metadata.origin.texts().get("sites") == printed


def test_recordings_with_and_without_sites_follow_one_another(tmp_path):
    """Each kind has its own hooks, which the next recording of the same kind reuses."""
    for number in range(6):
        with replay.record(tmp_path / f"{number}.parquet", sites=number % 3 == 1 or number % 3 * 500):
            take(50_081)
        events, _ = events_of(tmp_path / f"{number}.parquet")
        assert (events.site is None) == (number % 3 == 0)
        if number % 3 == 1:
            assert sites_by_size(tmp_path / f"{number}.parquet", [50_081])[50_081] == [line_of(take, "MALLOC")]


@pytest.mark.parametrize("sites", [-1, 1.5, "64 KiB"])
def test_an_invalid_number_of_bytes_is_refused(tmp_path, sites):
    with pytest.raises(replay.ReplayError, match="write True for every call"):
        replay.record(tmp_path / "trace.parquet", sites=sites)


def test_an_interpreter_whose_frames_are_not_known_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    with pytest.raises(replay.ReplayError, match=r"call sites need CPython 3\.11 to 3\.15"):
        replay.record(tmp_path / "trace.parquet", sites=True).start()
    assert tap.obstacle() is None


def test_with_a_jit_only_call_sites_are_refused(monkeypatch):
    """Neither by a check nor by the plugin for pytest, which use the same function."""
    monkeypatch.setattr(sys, "_jit", SimpleNamespace(is_enabled=lambda: True), raising=False)
    sentence = "CPython's JIT does not keep track of lines, so call sites cannot be recorded: set PYTHON_JIT=0"
    assert tap.obstacle(sites=True) == tap.site_obstacle() == sentence
    assert tap.obstacle() is None
    monkeypatch.setattr(sys, "_jit", SimpleNamespace(is_enabled=lambda: False), raising=False)
    assert tap.obstacle(sites=True) is None


def test_hooks_that_find_wrong_frames_are_detected(tmp_path, monkeypatch):
    """What would happen in a build of CPython with other offsets."""
    monkeypatch.setattr("replay.recorder.sites._is_noted", lambda *_: False)
    with pytest.raises(replay.ReplayError, match=r"call sites cannot be recorded with this build of CPython 3\."):
        replay.record(tmp_path / "trace.parquet", sites=True).start()
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    with replay.record(tmp_path / "trace.parquet", sites=True):
        take(50_087)
    assert sites_by_size(tmp_path / "trace.parquet", [50_087])[50_087] == [line_of(take, "MALLOC")]


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "os.abort()"])
def test_all_sites_are_known_however_the_program_dies(tmp_path, ending):
    path = tmp_path / "program.py"
    path.write_text(
        "import ctypes, os, signal\n"
        "def last():\n"
        "    ctypes.pythonapi.PyObject_Malloc(ctypes.c_size_t(50_091))\n"
        f"    {ending}\n"
        "last()\n"
    )
    record("--sites", path, cwd=tmp_path)
    assert sites_by_size(tmp_path / "trace.parquet", [50_091])[50_091] == [Site("last", str(path), 3)]


def test_sites_are_rescued_with_the_batches(tmp_path):
    """The writer is killed; each batch has only the new sites."""
    path = tmp_path / "trace.parquet"
    script = f"""
        import ctypes, os, signal, replay
        from replay.recorder.tap import tap, _word, AT_WRITER
        def first(): ctypes.pythonapi.PyObject_Malloc(ctypes.c_size_t(50_093))
        def second(): ctypes.pythonapi.PyObject_Malloc(ctypes.c_size_t(50_095))
        recording = replay.record({str(path)!r}, sites=True).start()
        for function in (first, second, first):
            function()
            recording.flush()
        os.kill(_word(tap._context + AT_WRITER).value, signal.SIGKILL)
        os._exit(0)
    """
    assert run_to_the_last(sys.executable, "-c", textwrap.dedent(script)).returncode == 0
    assert "events saved" in record("--rescue", path, cwd=tmp_path).stdout
    found = sites_by_size(path, [50_093, 50_095])
    assert found == {50_093: [Site("first", "<string>", 4)] * 2, 50_095: [Site("second", "<string>", 5)]}


def test_forked_children_tell_sites_where_they_are_followed(tmp_path):
    source = """
        import ctypes, os
        def take(size):
            ctypes.pythonapi.PyObject_Malloc(ctypes.c_size_t(size))
        take(50_101)
        if (child := os.fork()) == 0:
            take(50_103)
            os._exit(0)
        os.waitpid(child, 0)
        take(50_105)
        print(child)
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(source))
    command = [sys.executable, "-m", "replay", "record", "--sites", "--follow-fork", program]
    done = run_to_the_last(*command, cwd=tmp_path)
    path, child = tmp_path / "trace.parquet", tmp_path / f"trace.{done.stdout.strip()}.parquet"
    where = [Site("take", str(program), 4)]
    assert sites_by_size(path, [50_101, 50_103, 50_105]) == {50_101: where, 50_103: [], 50_105: where}
    assert sites_by_size(child, [50_101, 50_103]) == {50_101: [], 50_103: where}


def test_a_child_that_is_not_recorded_continues(tmp_path):
    with replay.record(tmp_path / "trace.parquet", sites=True):
        child = os.fork()
        if child == 0:
            kept = [bytes(number) for number in range(1000)]
            exec(compile("x = 1", "y", "exec"), {})
            os._exit(len(kept) % 256)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1000 % 256


ONE_DIGIT, TWO_DIGITS = sys.getsizeof(1), sys.getsizeof(1 << 30)
PROGRAM = f"""{ALLOCATING_PROGRAM}
    if i % 9 == 0:
        exec(f"def f(): return {{i}}", {{}})
"""


@pytest.mark.parametrize("options", [["--sites"], ["--sites-every", "4KiB"], []])
def test_a_clean_recording_with_sites_has_the_addresses_of_the_model(tmp_path, options):
    done = record("--clean", *options, "-c", PROGRAM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    agreement = verify_recording(replay.open_source(tmp_path / "trace.parquet"))
    assert agreement.exact, (agreement.difference, agreement.arena_difference)
    assert agreement.addresses_compared > 200_000


def test_the_program_makes_the_same_calls_with_sites_as_without(tmp_path):
    """Between two marks; except for CPython's free lists, which are never exactly equal in two runs.

    The compiler has addresses as keys: ints of one digit or two, by where the kernel put the heap of that run.
    """
    source = f"import gc, replay\ngc.collect(); gc.disable(); replay.mark('begin')\n{PROGRAM}\nreplay.mark('end')"
    counts = []
    for number, options in enumerate([[], ["--sites"], ["--sites-every", "4096"]]):
        env = os.environ | {"PYTHONHASHSEED": "0"}
        done = record(*options, "-o", f"{number}.parquet", "-c", source, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        events, _ = events_of(tmp_path / f"{number}.parquet")
        begin, end, _ = np.flatnonzero(events.op == Op.MARK)
        kinds = events.op[begin:end].astype(np.int64) << 32 | events.domain[begin:end].astype(np.int64) << 24
        sizes = np.where(events.size[begin:end] == ONE_DIGIT, TWO_DIGITS, events.size[begin:end])
        counts.append(np.unique(kinds | np.minimum(sizes, (1 << 24) - 1), return_counts=True))
    for kinds, count in counts[1:]:
        one, other = (dict(zip(*each, strict=True)) for each in (counts[0], (kinds, count)))
        assert sum(abs(one.get(kind, 0) - other.get(kind, 0)) for kind in one | other) < 50
        assert sum(one.values()) > 1_000_000


def test_the_command_refuses_contradictory_options(tmp_path):
    for arguments, sentence in [
        (
            ["--sites", "--sites-every", "64KiB"],
            "--sites and --sites-every exclude each other: --sites records every call",
        ),
        (["--sites-every", "0"], "--sites-every: must be at least 1 B; write it like 64KiB"),
        (["--sites-every", "many"], "--sites-every: 'many' is not a size; write it like 256 KiB"),
    ]:
        done = record(*arguments, "-c", "1", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, f"replay: {sentence}\n")
    assert not list(tmp_path.iterdir())


def test_the_writer_keeps_nothing_of_an_earlier_recording():
    file = os.memfd_create("ring")
    os.ftruncate(file, tap.SHARED_BYTES)
    ring = Ring(file, 1)
    ring._words[448 // 8] = 64
    ring = Ring(file, 1)
    ring.notes.read()
    assert ring.notes._codes == []
    os.close(file)
