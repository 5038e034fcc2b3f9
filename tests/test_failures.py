"""Errors of commands: one sentence and exit code 2; a traceback and 3 for a bug of replay; never 1."""

import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from conftest import run_python
from typer.testing import CliRunner

from replay import __main__ as command
from replay.__main__ import app
from replay.support.atomic_files import new_file, write_in_memory
from replay.support.errors import OutputError, ReplayError

QUICK = ["startup-static", "-a", "cpython-3.12"]
LOOP = "loop"
TOO_MANY_LINKS = "cannot be written: Too many levels of symbolic links"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, new, with only a loop of links."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / LOOP).symlink_to(LOOP)
    return tmp_path


def run_program(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a Python program that knows the command line as `command`."""
    program = f"import os, sys; from replay import __main__ as command\n{code}"
    return run_python("-c", program, env=environment)


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ReplayError("as it says"), "as it says"),
        (OSError(errno.ENOSPC, "No space left on device"), "the output cannot be written: No space left on device"),
        (OSError(errno.EFBIG, "File too large", "x"), "x: cannot be written: File too large"),
        (OSError(errno.EACCES, "Permission denied", "in.parquet"), "in.parquet: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "a file or device failed: Input/output error"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory: [Errno 12] Cannot allocate memory"),
        (MemoryError(), "not enough memory"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "not enough memory: malloc of size 64 failed"),
        (
            ImportError("libarrow.so: failed to map segment", name="pyarrow.lib"),
            "a library cannot be loaded; reinstall it, or free memory: libarrow.so: failed to map segment",
        ),
        (RecursionError("maximum recursion depth exceeded"), "the input is nested too deeply"),
        (EOFError("Ran out of input"), "a file is incomplete; copy it or create it again (Ran out of input)"),
        (pa.ArrowInvalid("no magic bytes\nmore"), "pyarrow cannot process the data: no magic bytes"),
        (pl.exceptions.ComputeError("invalid thrift"), "polars cannot process the data: invalid thrift"),
    ],
)
def test_errors_of_data_and_machine_are_one_sentence_and_exit_code_2(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command._report(error) == 2
    assert capsys.readouterr().err == f"replay: {sentence}\n"


def test_an_undecodable_text_is_reported_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert command._report(caught.value) == 2
    assert capsys.readouterr().err.startswith("replay: a text has the wrong encoding: 'utf-8' codec can't decode")


@pytest.mark.system
@pytest.mark.parametrize(
    "bug", ["KeyError('a')", "BaseException('a panic of a library')", "ImportError('x', name='replay.x')"]
)
def test_a_bug_shows_a_traceback_asks_for_a_report_and_exits_with_3(bug: str) -> None:
    done = run_program(f"def fail(): raise {bug}\ncommand.app = fail; command.main()")
    assert done.returncode == 3
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.splitlines()[-1] == "replay: this is a bug of replay: please report it with the lines above"


@pytest.mark.system
@pytest.mark.parametrize("error", ["EOFError", "BrokenPipeError", "KeyError"])
def test_no_exception_in_a_command_exits_with_1(error: str) -> None:
    code = (
        "import replay.support.bundled_files as resources; sys.argv = ['replay', 'allocators']\n"
        f"def fail(): raise {error}('x')\nresources.config_names = fail; command.main()"
    )
    done = run_program(code)
    assert done.returncode == (3 if error == "KeyError" else 2)
    assert "Aborted" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run", *QUICK, "--out", LOOP],
        ["run", *QUICK, "--addresses", LOOP],
        ["generate", "startup-static", "-o", LOOP],
        ["generate", "startup-static", "-o", f"{LOOP}/trace.parquet"],
        ["sweep", *QUICK, "--grid", "glibc.top_pad=0", "--out", LOOP],
        ["baseline", *QUICK, "--baseline", LOOP],
        ["check", *QUICK, "-t", "resident_bytes_peak<=1GiB", "--history", LOOP],
        ["check", *QUICK, "-t", "resident_bytes_peak<=1GiB", "--report", f"junit={LOOP}"],
        ["report", *QUICK, "-o", LOOP],
        ["export", *QUICK, "--to", "speedscope", "-o", LOOP],
        ["export", *QUICK, "--to", "csv", "-o", LOOP],
        ["import", "flask-requests", "-o", LOOP],
        ["trace", "cut", "flask-requests", "-o", LOOP],
        ["record", "-o", LOOP, "-c", "pass"],
        ["record", "--rescue", LOOP],
    ],
    ids=" ".join,
)
def test_a_loop_of_links_as_output_is_reported(here: Path, words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert str(result.exception).endswith(TOO_MANY_LINKS)
    assert isinstance(result.exception, ReplayError)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "long.toml",
            "a = " + 5000 * "9",
            "Exceeds the limit (4300 digits)",
        ),
        ("deep.toml", "a = " + 100_000 * "[", "is not valid TOML: nested too deeply"),
        (
            "long.json",
            '{"format": ' + 5000 * "9" + "}",
            "Exceeds the limit (4300 digits)",
        ),
        ("deep.json", 100_000 * "[", "is not valid JSON: nested too deeply"),
        ("deep.yaml", 100_000 * "[", "is not valid YAML: nested too deeply"),
    ],
)
def test_long_numbers_and_deep_nesting_in_a_document_are_reported(
    here: Path, name: str, content: str, sentence: str
) -> None:
    (here / name).write_text(content)
    option = {".toml": "--suite", ".json": "--baseline", ".yaml": "-a"}[Path(name).suffix]
    result = CliRunner().invoke(app, ["check", "startup-static", option, name])
    assert isinstance(result.exception, ReplayError)
    assert f"{name}: " in str(result.exception)
    assert sentence in str(result.exception)


def test_a_full_disk_is_reported_and_the_history_is_unchanged(here: Path) -> None:
    words = ["check", *QUICK, "-t", "resident_bytes_peak<=1GiB", "--history", "h.parquet"]
    assert CliRunner().invoke(app, words).exit_code == 0
    before = Path("h.parquet").read_bytes()
    with file_size_limit(1000):
        result = CliRunner().invoke(app, words)
    assert str(result.exception) == "h.parquet: cannot be written: File too large"
    assert (Path("h.parquet").read_bytes(), len(list(here.iterdir()))) == (before, 2)


@pytest.mark.parametrize("form", ["write_parquet", "write_csv"])
def test_a_frame_that_finds_the_disk_full_names_the_error_of_the_system(here: Path, form: str) -> None:
    frame = pl.DataFrame({"number": range(1000)})
    with (
        pytest.raises(OutputError, match=r"^out: cannot be written: File too large$"),
        file_size_limit(100),
        new_file("out") as temporary,
    ):
        write_in_memory(getattr(frame, form), temporary)
    assert [path.name for path in here.iterdir()] == [LOOP]


def test_an_error_about_an_input_or_memory_is_not_reported_for_the_output(here: Path) -> None:
    for error in (PermissionError(errno.EACCES, "Permission denied", "input"), OSError(errno.ENOMEM, "no memory")):
        with pytest.raises(OSError, match=str(error.strerror)) as caught, new_file("out"):
            raise error
        assert caught.value is error


@pytest.mark.system
@pytest.mark.parametrize("words", [["allocators"], ["schema", "config"], ["run", *QUICK, "--no-reference"]])
def test_a_full_device_as_standard_output_is_exit_code_2(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "replay", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "replay: the output cannot be written: No space left on device"


@pytest.mark.system
def test_characters_that_the_output_encoding_lacks_are_replaced() -> None:
    code = "command.app = lambda: print('12 µs █ …', '\\udcff', 'é'); command.main()"
    done = run_program(code, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "12 us # ... \\udcff \\xe9\n")
    assert run_program(code, PYTHONIOENCODING="utf-8").stdout == "12 µs █ … \\udcff é\n"
