"""Runs `replay` in forks of a process with all imports done, which saves more than a second of each command.

The process listens at the socket whose descriptor is its argument, `server` in a separate folder. A request is JSON,
with the descriptors that the command gets as its standard streams. The answer is the command's wait status. `replay` in
the same folder is a program that asks for this; a shell with the folder in PATH finds it. The process ends and removes
the folder when its standard input ends.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from select import select

ORDER_BYTES = 1 << 17
"""Maximum bytes of a request; most are the environment."""
PROGRAM = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys
asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asked.connect(os.path.join(os.path.dirname(__file__), "server"))
order = {{"arguments": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(asked, [json.dumps(order).encode()], [0, 1, 2])
code = os.waitstatus_to_exitcode(int(asked.recv(64)))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class CommandServer:
    """The server process, for tests."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="replay-tests-"))
        program = self.folder / "replay"
        program.write_text(PROGRAM, encoding="utf-8")
        program.chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(self.folder / "server"))
            listening.listen(64)
            command = [sys.executable, __file__, str(listening.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[listening.fileno()], stdin=subprocess.PIPE)

    def run(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `replay` with these arguments; returns the same as `subprocess.run`."""
        order = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
        with (
            tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked,
        ):  # fmt: skip
            given.write(stdin)
            given.seek(0)
            asked.connect(str(self.folder / "server"))
            files = [file.fileno() for file in (given, out, err)]
            socket.send_fds(asked, [json.dumps(order).encode()], files)
            answer = asked.recv(64)
            assert answer, "the server ended"
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(int(answer)), *texts)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def load() -> None:
    """Imports everything, and loads machine code: of a common stack, and of the writer of recordings."""
    import replay

    for module in walk_packages(replay.__path__, "replay."):
        if not module.name.startswith(("replay.pytest_plugin", "replay.__main__")):
            import_module(module.name)
    from replay.config import load_config
    from replay.recorder import detach, tap
    from replay.recorder.ring import Ring
    from replay.recorder.writer import Writer
    from replay.simulation.run import run
    from replay.sources import open_source

    for preset in ("cpython-3.12", "ideal", "bump"):
        run(open_source("startup-static"), load_config(preset))
    for sites_every in (0, 1):
        file = detach.make_memory_file(tap.SHARED_BYTES)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.parquet"
            Writer(Ring(file, sites_every), path, [sys.executable], addresses=True, force=False).discard()
        os.close(file)
    gc.freeze()  # a collection in a fork would copy all pages


def serve(listening: socket.socket) -> None:
    """Serves requests until standard input ends; returns in each fork, which runs the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that answer are not waited for
    while True:
        if sys.stdin in select([listening, sys.stdin], [], [])[0]:
            shutil.rmtree(Path(listening.getsockname()).parent)
            sys.exit()
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            text, files, _, _ = socket.recv_fds(asked, ORDER_BYTES, 3)
            if (child := os.fork()) == 0:
                asked.close()
                begin(json.loads(text), files)
                return
            asked.send(str(os.waitpid(child, 0)[1]).encode())
            os._exit(0)
        asked.close()


def begin(order: dict, files: list[int]) -> None:
    """Sets streams, folder, environment and arguments of the process."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["replay", *order["arguments"]]


if __name__ == "__main__":
    from replay.__main__ import main

    load()
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
