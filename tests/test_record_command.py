"""`replay record`: the program runs as without the recorder, and its events are in the file."""

import contextlib
import json
import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import sys
import termios
import textwrap

import numpy as np
import pytest
from conftest import PROGRAM_SECONDS, record, run_python, run_to_the_last, started

import replay
from replay.recorder import tap as taps
from replay.trace import TEARDOWN_MARK, Op

pytestmark = pytest.mark.system

if reason := taps.obstacle():
    pytest.skip(reason, allow_module_level=True)

RECORD = [sys.executable, "-m", "replay", "record"]


def run(*arguments, options=(), **more):
    """Records the program; returns exit code, standard output and standard error."""
    done = record(*options, *arguments, **more)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def program(tmp_path):
    def write(source):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(source))
        return path

    return write


def both(program, *arguments, cwd, env=None):
    """Runs the program alone and recorded, and compares; without the recorder's lines on standard error."""
    command = [sys.executable, str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=PROGRAM_SECONDS)
    bare = done.returncode, done.stdout, done.stderr
    code, out, printed = run(program, *arguments, cwd=cwd, options=["--force"], env=env)
    printed = re.sub(r"^(compiling \(|[\d,]+ events over|next: replay run).*\n", "", printed, flags=re.M)
    return bare, (code, out, printed)


SURROUNDINGS = """
    import json, os, signal, sys, threading, gc, __main__
    print(json.dumps([
        sys.argv, sys.path, __name__, __file__, __main__.__dict__.get("__cached__"), sys.orig_argv, sys.flags,
        {name: value for name, value in os.environ.items() if name != "_"}, threading.active_count(), os.getcwd(),
        sys.warnoptions, sys._xoptions, "sitecustomize" in sys.modules, "numpy" in sys.modules, "numba" in sys.modules,
        "typing" in sys.modules, "replay" in sys.modules, sorted(os.listdir("/proc/self/fd")),
        [path for path in sys.path_importer_cache if "replay-record" in path], gc.isenabled(), gc.get_threshold(),
        list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), os.getpgid(os.getppid()) == os.getpgrp(),
        [signal.getsignal(number) in (0, None) or str(signal.getsignal(number)) for number in range(1, 32)],
        sorted(name for name in sys.modules if name != "_replay_tap"),
    ]))
"""


@pytest.mark.parametrize("path", [None, "", "/nowhere:/else"])
def test_a_program_finds_its_surroundings_as_without_us(program, tmp_path, path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {} if path is None else {"PYTHONPATH": path}
    bare, recorded = both(program(SURROUNDINGS), "one", "-o", "--two", cwd=tmp_path, env=env)
    assert recorded == bare
    assert json.loads(bare[1])[0][1:] == ["one", "-o", "--two"]


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-"])
def test_a_program_has_the_standard_streams_that_are_open_and_no_others(program, tmp_path, closed):
    path = program("""
        import os, sys
        with open(sys.argv[1], "w") as file:
            print(sys.stdin is None, sys.stdout is None, sys.stderr is None, os.listdir("/proc/self/fd"), file=file)
    """)
    seen = []
    for number, command in enumerate(([sys.executable], [*RECORD, "--force"])):
        printed = tmp_path / f"{number}.txt"
        line = f"{shlex.join([*command, str(path), str(printed)])} {closed}"
        subprocess.run(["sh", "-c", line], check=True, cwd=tmp_path, stdin=0, timeout=PROGRAM_SECONDS)
        seen.append(printed.read_text())
    assert seen[1] == seen[0]


def test_a_program_can_import_the_recorders_modules_again(program, tmp_path):
    path = program("""
        import _ctypes, atexit, ctypes, struct
        class Pair(ctypes.Structure):
            _fields_ = [("first", ctypes.c_int), ("second", ctypes.POINTER(ctypes.c_int))]
        number = ctypes.c_int(7)
        pair = Pair(3, ctypes.pointer(number))
        order = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
        numbers = (ctypes.c_int * 3)(3, 1, 2)
        ctypes.CDLL(None).qsort(numbers, 3, 4, order(lambda one, other: one[0] - other[0]))
        print(pair.second[0], list(numbers), struct.unpack("<h", b"ab"), isinstance(number, _ctypes._SimpleCData))
        atexit.register(print, "the end")
    """)
    bare, recorded = both(path, cwd=tmp_path)
    assert recorded == bare
    assert bare[:2] == (0, "7 [1, 2, 3] (25185,) True\nthe end\n")


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit('told')",
        "def f(): 1 / 0\nf()",
        "import os; print('gone', flush=True); os._exit(5)",
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass",
        "import atexit; atexit.register(print, 'the end'); print('the start')",
        "import sys; print(sys.stdin.read()); print('to stderr', file=sys.stderr)",
        "import threading; t = threading.Thread(target=lambda: 1 / 0, name='mine'); t.start(); t.join(); print(2)",
        "import os\nif os.fork() == 0: os._exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.path)'])",
        "import multiprocessing as m\nif __name__ == '__main__': print(m.get_context('spawn').Pool(2).map(abs, [-1]))",
        "import os; print(sorted(os.listdir('/proc/self/fd')))",
        "syntax error",
    ],
)  # fmt: skip
def test_a_program_ends_as_without_us(program, tmp_path, source):
    bare, recorded = both(program(source), cwd=tmp_path)
    bare, recorded = (
        (code, out, re.sub(r"0x[0-9a-f]+|\b1[0-9]{14}\b", "", printed)) for code, out, printed in (bare, recorded)
    )
    assert recorded == bare
    list(replay.open_source(tmp_path / "trace.parquet").batches())


def test_modules_and_code_run_as_with_python(tmp_path):
    assert run("-m", "json.tool", "--compact", cwd=tmp_path, stdin='{"a": 1}')[:2] == (0, '{"a":1}\n')
    options = ["-o", tmp_path / "code.parquet"]
    code, out, printed = run("-c", "import sys; print(sys.argv)", "-o", "x", options=options)
    assert (code, out) == (0, "['-c', '-o', 'x']\n")
    assert printed.endswith(f"next: replay run {tmp_path / 'code.parquet'}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_program(program, tmp_path, number):
    path = program(f"""
        import os, signal, sys
        def caught(number, frame):  # maybe in the midst of the print below
            os.write(1, f"caught {{int(number)}}\\n".encode())
            sys.exit(9)
        signal.signal({int(number)}, caught)
        print("ready", flush=True)
        while True:  # a system call that waits could be entered right after the signal
            pass
    """)
    with started([*RECORD, str(path)], cwd=tmp_path) as recorder:
        assert recorder.stdout.readline() == "ready\n"
        recorder.send_signal(number)
        assert recorder.stdout.read() == f"caught {int(number)}\n"
    assert recorder.returncode == 9


WAITS = """
    import signal
    numbers = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGWINCH}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    print("ready", flush=True)
    while (number := signal.sigwait(numbers)) != signal.SIGWINCH:
        print(number.name, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT])
@pytest.mark.parametrize("send", [os.killpg, os.kill])
def test_a_signal_to_the_group_or_to_the_recorder_reaches_the_program_once(program, tmp_path, number, send):
    """SIGWINCH comes after all copies of the signals before it, because signals are forwarded lowest number first."""
    command = [*RECORD, str(program(WAITS))]
    with started(command, cwd=tmp_path) as recorder:
        assert recorder.stdout.readline() == "ready\n"
        for _ in range(2):
            send(recorder.pid, number)
            assert recorder.stdout.readline() == f"{number.name}\n"
        os.kill(recorder.pid, signal.SIGWINCH)
        assert recorder.stdout.read() == ""
    assert recorder.returncode == 0


LOCAL_MODES = 3
"""Index in the list of `termios.tcgetattr`."""


def test_ctrl_c_in_a_terminal_reaches_the_program_once(program, tmp_path):
    path = program(WAITS)
    process, terminal = pty.fork()
    if process == 0:
        attributes = termios.tcgetattr(0)
        # neither echo nor, at Ctrl-C, loss of what was printed but not read yet
        attributes[LOCAL_MODES] = attributes[LOCAL_MODES] & ~termios.ECHO | termios.NOFLSH
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        os.chdir(tmp_path)
        os.execv(RECORD[0], [*RECORD, str(path)])
    with os.fdopen(terminal, "r+b", buffering=0) as both_ways:
        assert both_ways.readline() == b"ready\r\n"
        both_ways.write(b"\x03")
        assert both_ways.readline() == b"SIGINT\r\n"
        os.kill(process, signal.SIGWINCH)
        rest = b""
        with contextlib.suppress(OSError):  # the terminal's last process has ended
            while part := both_ways.read(4096):
                rest += part
        assert b"SIGINT" not in rest
        assert b"next: replay run" in rest
    assert os.waitpid(process, 0)[1] == 0


def test_a_stopped_group_gets_the_signals_to_the_recorder_once_it_continues(program, tmp_path):
    command = [*RECORD, str(program(WAITS))]
    with started(command, cwd=tmp_path) as recorder:
        assert recorder.stdout.readline() == "ready\n"
        os.killpg(recorder.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, recorder.pid, os.WSTOPPED)
        os.kill(recorder.pid, signal.SIGTERM)
        os.kill(recorder.pid, signal.SIGCONT)
        assert {recorder.stdout.readline(), recorder.stdout.readline()} == {"SIGTERM\n", "SIGCONT\n"}
        os.kill(recorder.pid, signal.SIGWINCH)
        assert recorder.stdout.read() == ""
    assert recorder.returncode == 0


KILLED = """
import os, signal, sys
from replay.__main__ import main
from replay.recorder import writer
append = writer.Writer._append
def append_and_die(self):
    append(self)
    if self._rows > 1000:
        os.kill(os.getpid(), signal.SIGKILL)
writer.Writer._append, writer.BATCH_SECONDS = append_and_die, 0
sys.argv = ["replay", "record", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("name", ["trace.parquet", "trace.parquet.part"])
def test_the_part_of_a_killed_recorder_can_be_rescued(program, tmp_path, name):
    """The recorder is killed right after it wrote a batch; the program continues until its standard input ends."""
    path = program("""
        import sys
        kept = [str(index) for index in range(10_000)]
        print(sys.stdin.read(), end="")
    """)
    command = [sys.executable, "-c", KILLED, str(path)]
    with started(command, cwd=tmp_path, stdin=subprocess.PIPE) as recorder:
        assert recorder.wait(PROGRAM_SECONDS) == -signal.SIGKILL
        recorder.stdin.write("the program lives\n")
        recorder.stdin.close()
        assert recorder.stdout.read() == "the program lives\n"
    code, _, printed = run(path, cwd=tmp_path)
    assert code == 2
    assert "replay record --rescue trace.parquet" in printed
    code, out, _ = run(cwd=tmp_path, options=["--rescue", name])
    assert code == 0
    assert "events saved; trace.parquet is complete" in out
    events = list(replay.open_source(tmp_path / "trace.parquet").batches())
    assert sum(batch.rows for batch in events) > 1000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.py"], "replay: nowhere.py: the script does not exist\n"),
        (["-m"], "replay: -m needs a module after it\n"),
        (["--frob", "x.py"], "replay: unknown option --frob; `replay record --help` lists the options\n"),
        ([], "replay: nothing to record; name a script, -m and a module, or -c and code\n"),
        (["--rescue", "nowhere.parquet"], None),
        (["-o", "/no/folder/x.parquet", "-c", "1"], None),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, sentence):
    code, out, printed = run(*arguments, cwd=tmp_path)
    assert (code, out, printed.count("\n")) == (2, "", 1)
    assert sentence is None or printed == sentence
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "trace.parquet").write_text("mine")
    code, _, printed = run("-c", "print(1)", cwd=tmp_path)
    assert code == 2
    assert "already exists" in printed
    assert (tmp_path / "trace.parquet").read_text() == "mine"


def test_a_full_disk_is_reported_and_saved_events_are_complete(tmp_path):
    """A limit of the file size has the same effect as a full disk: the write fails."""
    script = (
        "print(input(), flush=True)\ninput()\nfor _ in range(300): [str(i) * 9 for i in range(5000)]\nprint('done')"
    )
    recorder = subprocess.Popen(
        [*RECORD, "-c", script], cwd=tmp_path, text=True, stdin=-1, stdout=-1, stderr=-1
    )  # fmt: skip
    recorder.stdin.write("running\n")
    recorder.stdin.flush()
    assert recorder.stdout.readline() == "running\n"
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    out, printed = recorder.communicate("\n", timeout=PROGRAM_SECONDS)
    assert (recorder.returncode, out) == (0, "done\n")
    assert "can no longer be written" in printed
    assert "Traceback" not in printed
    events = list(replay.open_source(tmp_path / "trace.parquet").batches())
    assert sum(batch.rows for batch in events) > 100_000


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of 8 MiB, which only root can create."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("filled_bytes", [0, 7 << 20, (8 << 20) - 20_000])
def test_a_disk_that_becomes_full_is_reported_and_saved_events_are_complete(program, small_disk, filled_bytes):
    (small_disk / "other").write_bytes(bytes(filled_bytes))
    path = program("""
        import sys
        for _ in range(600): [str(i) * 9 for i in range(5000)]
        print("done")
        sys.exit(3)
    """)
    code, out, printed = run(path, cwd=small_disk)
    assert (code, out) == (3, "done\n")
    what = "can no longer be written: No space left on device; all events until then are saved"
    sentences = [line for line in printed.splitlines() if line.startswith("replay: ")]
    assert sentences == [f"replay: {small_disk}/trace.parquet: {what}"]
    assert "Traceback" not in printed
    trace = replay.open_source(small_disk / "trace.parquet")
    saved = sum(batch.rows for batch in trace.batches())
    assert saved == trace.events_total
    assert saved > 500_000 or filled_bytes


def test_a_disk_without_any_room_is_reported_and_the_program_is_not_run(program, small_disk):
    with (small_disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while True:
            other.write(bytes(1 << 16))
    code, out, printed = run(program("print('done')"), cwd=small_disk)
    assert (code, out) == (2, "")
    assert printed == "replay: trace.parquet: cannot be written: No space left on device\n"


def test_without_a_steady_counter_the_time_is_the_kernels(tmp_path):
    """Without a usable counter of the processor, hooks use the kernel's clock, and the writer reads nanoseconds."""
    code = (
        "import sys, replay.recorder.hook_kinds as hooks\n"
        "hooks.has_steady_counter = lambda: False\n"
        "from replay.__main__ import main\n"
        "sys.argv = ['replay', 'record', '-c', sys.argv[1]]\n"
        "main()\n"
    )
    program = (
        "import time, replay\nbegin_ns = time.monotonic_ns(); replay.mark('a'); marked_ns = time.monotonic_ns()\n"
        "while time.monotonic_ns() < marked_ns + 200_000_000: pass\n"
        "replay.mark('b'); print(time.monotonic_ns() - begin_ns); [bytes(77) for _ in range(999)]"
    )
    done = run_python("-c", code, program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    batches = list(replay.open_source(tmp_path / "trace.parquet").batches())
    time_ns, op, size = (np.concatenate([batch[column] for batch in batches]) for column in (0, 2, 5))
    first, second, _ = time_ns[op == Op.MARK].tolist()
    assert 200_000_000 <= second - first <= 1.01 * int(done.stdout.split()[0])
    assert (np.diff(time_ns) >= 0).all()
    assert np.count_nonzero(np.diff(time_ns)) > op.shape[0] // 2
    assert 999 <= np.count_nonzero((size == 110) & (op <= Op.CALLOC)) < 1100


def test_marks_of_the_program_are_phases(tmp_path):
    run("-c", "import replay; replay.mark('after import'); x = []", cwd=tmp_path)
    trace = replay.open_source(tmp_path / "trace.parquet")
    assert trace.metadata.phases == ("after import", TEARDOWN_MARK)
    assert sum(int((batch.op == Op.MARK).sum()) for batch in trace.batches()) == 2


def test_a_clean_start_follows_the_model(tmp_path):
    """Every block of a class without foreign frees has the address that new pools of pymalloc have."""
    code = "import ctypes; f = ctypes.pythonapi.PyObject_Malloc; [f(ctypes.c_size_t(497)) for _ in range(9)]"
    run("-c", code, cwd=tmp_path, options=["--clean"])
    batches = list(replay.open_source(tmp_path / "trace.parquet").batches())
    addresses = np.concatenate([batch.address[batch.size == 497] for batch in batches]).astype(np.int64)
    assert (np.diff(addresses)[2:] == 512).all()  # the first two reuse addresses of older blocks


def test_forked_children_are_recorded_on_request(tmp_path):
    code = """
import os, replay
children = []
for number in range(2):
    if (child := os.fork()) == 0:
        replay.mark(f"child {number}")
        os._exit(0)
    children.append(child)
    os.waitpid(child, 0)
replay.mark("parent")
print(*children)
"""
    done = run_to_the_last(*RECORD, "--follow-fork", "-o", "all.parquet", "-c", code, cwd=tmp_path)
    out, printed = done.stdout, done.stderr
    assert (done.returncode, out.count(" ")) == (0, 1), printed
    children = [f"all.{child}.parquet" for child in sorted(out.split(), key=str)]
    assert printed.splitlines()[-2:] == [f"forked children: {', '.join(children)}", "next: replay run all.parquet"]
    paths = [tmp_path / "all.parquet", *(tmp_path / f"all.{child}.parquet" for child in out.split())]
    phases = [replay.open_source(path).metadata.phases for path in paths]
    assert phases == [
        ("fork 1", "fork 2", "parent", TEARDOWN_MARK),
        ("fork 1", "child 0"),
        ("fork 2", "child 1"),
    ]
    for path in paths:
        assert sum(batch.rows for batch in replay.open_source(path).batches()) > 0


def test_a_forked_child_that_cannot_start_its_writer_says_so_in_one_line(tmp_path):
    """Here, descriptors are missing; a program that has changed its user may lack permissions."""
    code = """
import os, resource
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, free + 1))
if (child := os.fork()) == 0:
    os._exit(0)
os.waitpid(child, 0)
print(child)
"""
    code, out, printed = run("-c", code, cwd=tmp_path, options=["--follow-fork"])
    assert code == 0
    reason = "its writer cannot be started: [Errno 24] Too many open files"
    assert printed.splitlines()[0] == f"replay: process {out.strip()} is not recorded: {reason}"
    assert "Traceback" not in printed
    assert "forked children" not in printed


@pytest.fixture
def recording(tmp_path):
    """A recording of trace.parquet in progress; its program waits for the end of standard input."""
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    recorder = subprocess.Popen([*RECORD, "-c", code], cwd=tmp_path, text=True, stdin=-1, stdout=-1, stderr=-1)
    assert recorder.stdout.readline() == "ready\n"
    yield recorder
    recorder.communicate(timeout=PROGRAM_SECONDS)


def test_a_recording_under_way_is_not_rescued(recording, tmp_path):
    code, out, printed = run(cwd=tmp_path, options=["--rescue", "trace.parquet"])
    assert (code, out) == (2, "")
    assert printed == "replay: trace.parquet: the recording is in progress, and its writer completes the file\n"
    recording.communicate(timeout=PROGRAM_SECONDS)
    assert recording.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]
    assert replay.open_source(tmp_path / "trace.parquet").events_total > 0


def test_a_second_recorder_without_force_reports_the_recording_in_progress(recording, tmp_path):
    code, out, printed = run("-c", "print('ran')", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert printed == "replay: trace.parquet: a recording to this file is in progress; choose another name\n"


def test_a_second_recorder_with_force_never_publishes_the_file_of_the_first(recording, tmp_path):
    """The recording that ends first gets the name; without --force the other one is refused, and keeps its part."""
    code, _, printed = run("-c", "import replay; replay.mark('second')", cwd=tmp_path, options=["--force"])
    assert code == 0, printed
    trace = replay.open_source(tmp_path / "trace.parquet")
    assert trace.metadata.phases[0] == "second"
    assert sum(batch.rows for batch in trace.batches()) == trace.events_total
    _, printed = recording.communicate(timeout=PROGRAM_SECONDS)
    assert recording.returncode == 2
    part = tmp_path / "trace.parquet.part"
    assert printed.splitlines()[-1].endswith(f"--force; the recording is complete in {part}")
    assert replay.open_source(tmp_path / "trace.parquet").metadata.phases[0] == "second"
    assert replay.open_source(part).events_total > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_program_starts_leaves_no_file(tmp_path, number):
    """The signal arrives when the recorder blocks signals, and is handled right before the program would start."""
    code = "import os, signal\nfrom replay.recorder import writer\nrun = writer.Writer._rehearse\n"
    code += f"writer.Writer._rehearse = lambda self: (run(self), signal.raise_signal({int(number)}))\n"
    code += "import sys; from replay.__main__ import main; sys.argv = ['replay', 'record', '-c', 'print(1)']; main()"
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert list(tmp_path.iterdir()) == []


def test_a_part_without_events_is_no_obstacle(tmp_path):
    """The part of a recorder that was killed before it wrote anything."""
    (tmp_path / "trace.parquet.part").write_bytes(b"PAR1")
    code, _, printed = run(cwd=tmp_path, options=["--rescue", "trace.parquet"])
    assert code == 2
    assert "has no complete batch, so nothing can be rescued; delete it" in printed
    assert run("-c", "print('ran')", cwd=tmp_path)[:2] == (0, "ran\n")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]


@pytest.mark.parametrize("allocator", ["malloc", "pymalloc_debug", "malloc_debug"])
def test_other_allocators_are_recorded_as_they_are_called(tmp_path, allocator):
    """Debug hooks add guards to each block; the recording has the requested sizes."""
    code = (
        "import ctypes; f, g = ctypes.pythonapi.PyObject_Malloc, ctypes.pythonapi.PyMem_RawMalloc\n"
        "[each(ctypes.c_size_t(size)) for each in (f, g) for size in (333, 33_333)]"
    )
    env = os.environ | {"PYTHONMALLOC": allocator}
    assert run("-c", code, cwd=tmp_path, env=env)[0] == 0
    batches = list(replay.open_source(tmp_path / "trace.parquet").batches())
    for size in (333, 33_333):
        domains = [domain for batch in batches for domain in batch.domain[(batch.size == size) & (batch.op == 0)]]
        assert domains == [2, 0]
