"""Fixtures, and helpers that several test files import."""

import atexit
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from click import testing
from command_server import CommandServer
from histories import seeded
from hypothesis import settings
from typer.testing import CliRunner

import replay as replay_package
from replay.__main__ import app, main
from replay.simulation.walk import Walk
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.errors import ReplayError, TraceError
from replay.trace import Domain, Events, Op, Trace, joined
from replay.verification.harness import HarnessError

# A shell starts background jobs with these signals ignored, and all their children inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Programs that tests start write bytecode: otherwise, a child pytest spends half of its time on rewriting its plugins.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The time of an example depends on the load of the machine.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--check-invariants",
        action="store_true",
        help="check the invariants of all models in every simulation in the tests' process, as `replay run --check`",
    )


def pytest_configure(config: pytest.Config) -> None:
    Walk.checks = config.getoption("--check-invariants")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the longest tests first, so that workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


CI_VARIABLES = ("GITHUB_ACTIONS", "GITLAB_CI", "GITHUB_STEP_SUMMARY")
"""Environment variables by which a command recognizes a CI service, whose report format it then uses."""
PYTHON_APIS = {Domain.RAW: "PyMem_Raw", Domain.MEM: "PyMem_", Domain.OBJ: "PyObject_"}
PROGRAM_SECONDS = 300
"""Timeout of programs that tests run; even a busy machine needs only a hundredth of it."""

Command = Callable[..., tuple[int, str, str]]


# The command line, in this process


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the entry point of the installed script; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["replay", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def refused(replay: Command) -> Callable[..., str]:
    """Calls `replay` with arguments that it must refuse; returns standard error."""

    def call(*arguments: object) -> str:
        code, out, err = replay(*arguments)
        assert (code, out) == (2, "")
        return err

    return call


@pytest.fixture
def outside_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, new and empty; without variables of CI services."""
    monkeypatch.chdir(tmp_path)
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def invoke(*arguments: object, width: int = 120) -> testing.Result:
    """Returns the result of a command that Typer calls, without the error messages of the installed script."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=width)


def output_of(*arguments: object) -> str:
    """Returns the standard output of a command; raises the error of replay if it fails."""
    result = invoke(*arguments)
    if isinstance(result.exception, ReplayError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


# Programs in other processes


def run_python(
    *arguments: object, paths: tuple[Path, ...] = (), **options: object
) -> "subprocess.CompletedProcess[str]":
    """Runs this interpreter with replay and these folders in sys.path; `options` are those of subprocess.run."""
    folders = [*paths, Path(replay_package.__file__).parents[1], Path(__file__).parent]
    environment = {**os.environ, **options.pop("env", {}), "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, *map(str, arguments)]
    given = {"check": False, "timeout": PROGRAM_SECONDS} | options
    return subprocess.run(command, capture_output=True, text=True, env=environment, **given)


@cache
def server() -> CommandServer:
    """Returns the server of this process; starts it at the first call."""
    started = CommandServer()
    atexit.register(started.close)
    return started


def record(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = False,
) -> "subprocess.CompletedProcess[str]":
    """Runs `replay record`."""
    words = ["record", *map(str, arguments)]
    done = server().run(words, cwd or Path.cwd(), os.environ if env is None else env, stdin)
    assert not check or done.returncode == 0, done.stderr
    return done


def recorded(folder: Path, *arguments: object, env: Mapping[str, str] | None = None) -> Trace:
    """Returns the recording of a program, with any exit code."""
    path = folder / "trace.parquet"
    record("--force", "-o", path, *arguments, env=env)
    return open_source(path)


def run_to_the_last(*command: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Runs a program and waits until all its descendants have ended, including writers of recordings.

    They inherit one end of a pipe; the other end reads the end of the file when the last of them has ended.
    """
    ours, theirs = os.pipe()
    with os.fdopen(ours) as pipe:
        try:
            done = subprocess.run(
                [str(word) for word in command], capture_output=True, text=True, pass_fds=[theirs],
                **{"timeout": PROGRAM_SECONDS} | options,
            )  # fmt: skip
        finally:
            os.close(theirs)
        pipe.read()
    return done


ALLOCATING_PROGRAM = """
import json
documents = [{"id": i, "name": "x" * (i % 40), "tags": [str(j) for j in range(i % 7)]} for i in range(4000)]
for _ in range(2):
    texts = [json.dumps(document) for document in documents]
    again = [json.loads(text) for text in texts]
words = {}
for i in range(30000):
    words[f"w{i % 9000}"] = [i] * (i % 20)
    if i % 3 == 0:
        words.pop(f"w{i // 2 % 9000}", None)
"""
"""A program that allocates blocks of many sizes and releases arenas. It ends within a loop that may be continued."""


@contextmanager
def started(command: Sequence[object], **options: object) -> Iterator["subprocess.Popen[str]"]:
    """Starts a program in a new process group, with a pipe from its output. Kills the group if the test fails, because
    the end of the `with` statement waits for the program."""
    given = {"stdout": subprocess.PIPE, "text": True, "process_group": 0} | options
    with subprocess.Popen(list(map(str, command)), **given) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


ANNOUNCED = """
import sys
from replay.__main__ import main
from replay.sweeps.journal import Journal
add = Journal.add
Journal.add = lambda journal, outcome: (add(journal, outcome), print("one", flush=True))
sys.argv = ["replay", "sweep", *sys.argv[1:]]
main()
"""


def interrupted_sweep(*arguments: object) -> tuple[int, str]:
    """Returns exit code and standard error of a sweep whose processes get SIGINT after the first run."""
    command = [sys.executable, "-c", ANNOUNCED, *map(str, arguments)]
    with started(command, stderr=subprocess.PIPE) as sweeping:
        assert sweeping.stdout.readline() == "one\n"
        os.killpg(sweeping.pid, signal.SIGINT)
        out, printed = sweeping.communicate(timeout=PROGRAM_SECONDS)
    assert set(out.splitlines()) <= {"one"}
    return sweeping.returncode, printed


# Real allocators and the kernel


@contextmanager
def skipped_where_disturbed() -> Iterator[None]:
    """Skips the test if Linux changes huge pages in the background during every comparison."""
    try:
        yield
    except HarnessError as error:
        if "cannot be compared on this machine now" not in str(error):
            raise
        pytest.skip(str(error))


@contextmanager
def reserved_pages_alone() -> Iterator[None]:
    """Prevents that several workers run tests with the machine's reserved huge pages at the same time."""
    with (Path(tempfile.gettempdir()) / "replay-tests-reserved-pages").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Traces


@pytest.fixture
def source(tmp_path: Path) -> str:
    """The path of a trace of 2,000 events."""
    path = tmp_path / "t.parquet"
    write_trace(seeded(3, 2000).trace(), path)
    return str(path)


def written(folder: Path, text: str, name: str = "log") -> Path:
    """The path of a new file with this text."""
    path = folder / name
    path.write_text(text)
    return path


def events_in(path: Path) -> Events:
    """All events of a file, validated, in one batch."""
    return joined(list(open_source(path).batches()))


def python_api(domain: Domain, verb: str, library: ctypes.CDLL = ctypes.pythonapi) -> Callable[..., int | None]:
    """Returns CPython's function `verb` of a domain; functions of `pythonapi` are called with the GIL."""
    function = library[PYTHON_APIS[domain] + verb]  # a new object, unlike an attribute
    function.restype = ctypes.c_void_p
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = {"Malloc": [size], "Calloc": [size] * 2, "Realloc": [pointer, size], "Free": [pointer]}[verb]
    return function


def event_rows(trace: Trace, *columns: str) -> list[tuple[object, ...]]:
    """Returns the events as tuples of these columns; ops as names."""
    return [
        tuple(Op(value).name.lower() if name == "op" else value for name, value in zip(columns, row, strict=True))
        for events in trace.batches()
        for row in zip(*(getattr(events, name).tolist() for name in columns), strict=True)
    ]


def refusal(path: Path, **options: object) -> str:
    """Returns the error message when a file is read, without the name of the file at its beginning."""
    with pytest.raises(TraceError) as caught:
        for _ in open_source(path, **options).batches():
            pass
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")
