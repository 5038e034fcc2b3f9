"""A command that a signal stops ends with that signal's exit code and leaves no unfinished file."""

import signal
import subprocess
import sys

import pytest
from conftest import PROGRAM_SECONDS, run_python, started

pytestmark = pytest.mark.system

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
MAIN = "import sys; from replay.__main__ import main; sys.argv = ['replay', *sys.argv[1:]]; main()"
ENDLESS = """
duration: 100000 s
streams: {a: {arrivals: {kind: fixed, rate: 100/ms}, size: 64, lifetime: 1 ms}}
"""
LOSE = {
    "destructor": "type('Gone', (), {'__del__': lambda self: signal.raise_signal(number)})()",
    "except clause": "try: signal.raise_signal(number)\n        except BaseException: pass",
}
"""Ways in which an exception of a signal handler is lost, as they occur in imports."""


def run(code, *arguments, cwd):
    return run_python("-c", code, *arguments, cwd=cwd)


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_stopped_generate_leaves_no_unfinished_file(tmp_path, number):
    workload, folder = tmp_path / "endless.yaml", tmp_path / "out"
    workload.write_text(ENDLESS)
    folder.mkdir()
    code = f"""
import pyarrow.parquet as pq
write = pq.ParquetWriter.write_table
pq.ParquetWriter.write_table = lambda *table, **options: (write(*table, **options), print("written", flush=True))
{MAIN}
"""
    command = [sys.executable, "-c", code, "generate", str(workload), "-o", str(folder / "trace.parquet")]
    with started(command, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "written\n"
        assert any(folder.iterdir())
        process.send_signal(number)
        _, printed = process.communicate(timeout=PROGRAM_SECONDS)
    assert process.returncode == EXIT_CODES[number]
    assert list(folder.iterdir()) == []
    assert "Traceback" not in printed


@pytest.mark.parametrize("lose", LOSE.values(), ids=LOSE)
@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_that_an_import_loses_still_stops_the_command(tmp_path, number, lose):
    """The finder below is code that runs in an import; the wait ends when the signal is raised again."""
    code = f"""
import select, signal, sys
number = {int(number)}
class Losing:
    def find_spec(self, name, path=None, target=None):
        if name != "numpy":
            return
        sys.meta_path.remove(self)
        {lose}
        select.select([], [], [], 30)
sys.meta_path.insert(0, Losing())
{MAIN}
"""
    done = run(code, "generate", "startup-static", "-o", "trace.parquet", cwd=tmp_path)
    assert done.returncode == EXIT_CODES[number]
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


def test_a_signal_is_not_raised_again_while_the_command_cleans_up(tmp_path):
    """The alarm that raises a lost signal again occurs four times during the cleanup, and does not interrupt it."""
    code = """
import signal
import replay.__main__ as command
def app():
    alarms, raise_again = [], signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, lambda *where: (alarms.append(where), raise_again(*where)))
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        while len(alarms) < 4:
            signal.pause()
        print("cleaned up")
command.app = app
command.main()
"""
    done = run(code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleaned up\n", "")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup, and in a shell's background jobs."""
    code = f"import signal; [signal.signal(each, signal.SIG_IGN) for each in {list(map(int, EXIT_CODES))}]\n"
    code += "import sys, replay.__main__ as command\n"
    code += f"command.app = lambda: [signal.raise_signal(each) for each in {list(map(int, EXIT_CODES))}]\n"
    code += "command.main()"
    assert run(code, cwd=tmp_path).returncode == 0


def test_a_signal_during_the_start_of_the_writing_thread_closes_no_open_file(tmp_path):
    """An executor does not wait for a thread whose start was interrupted."""
    code = f"""
import os, signal, threading
import pyarrow.parquet as pq
closed = threading.Event()
start, close = threading.Thread.start, pq.ParquetWriter.close
def start_interrupted(thread):
    start(thread)
    if thread.name.startswith("ThreadPoolExecutor"):
        signal.raise_signal(signal.SIGINT)
threading.Thread.start = start_interrupted
pq.ParquetWriter.close = lambda writer: (close(writer), closed.set())
pq.ParquetWriter.write_table = lambda *_, **__: (closed.wait(20), os.write(2, b"written too late"))
{MAIN}
"""
    done = run(code, "generate", "startup-static", "-o", "trace.parquet", cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (130, [])
    assert "written too late" not in done.stderr


def test_a_refused_recording_blocks_no_signal_of_its_process(tmp_path):
    (tmp_path / "kept.parquet").write_text("there already")
    code = f"""
import signal, sys
from replay.__main__ import main
sys.argv = ["replay", "record", "-o", {str(tmp_path / "kept.parquet")!r}, "-c", "pass"]
try:
    main()
except SystemExit as end:
    print(end.code, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
"""
    done = run(code, cwd=tmp_path)
    assert done.stdout == "2 []\n"
