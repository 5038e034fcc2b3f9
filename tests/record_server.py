"""Runs `replay record` in forks of a process with all imports done, which saves a second for each recording.

The process reads orders from the socket whose descriptor is its argument: JSON, with the descriptors that the command
gets as its standard streams. It answers with the command's wait status, and ends when the other side is closed.
"""

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ORDER_BYTES = 1 << 17
"""Maximum bytes of a request; most are the environment."""


class RecordServer:
    """The server process, for tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def record(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], stdin: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `replay record`; returns the same as `subprocess.run`."""
        order = {"arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            files = [file.fileno() for file in (given, out, err)]
            socket.send_fds(self._socket, [json.dumps(order).encode()], files)
            answer = self._socket.recv(64)
            assert answer, "the server ended"
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(int(answer)), *texts)

    def close(self) -> None:
        """Ends the process."""
        self._socket.close()
        self._process.wait()


def load() -> None:
    """Writes and removes a recording, so that everything is imported and loaded."""
    from replay.commands import record  # noqa: F401 — what is imported here, no fork imports
    from replay.recorder import detach, frames, launch, tap  # noqa: F401
    from replay.recorder.ring import Ring
    from replay.recorder.writer import Writer

    for sites_every in (0, 1):
        file = detach.make_memory_file(tap.SHARED_BYTES)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.parquet"
            Writer(Ring(file, sites_every), path, [sys.executable], addresses=True, force=False).discard()
        os.close(file)
    gc.freeze()  # a collection in a fork would copy all pages


def serve(orders: socket.socket) -> None:
    """Serves requests until the other side closes the socket; returns in each fork, which runs the command."""
    while True:
        text, files, _, _ = socket.recv_fds(orders, ORDER_BYTES, 3)
        if not text:
            sys.exit()
        if (child := os.fork()) == 0:
            orders.close()
            begin(json.loads(text), files)
            return
        for file in files:
            os.close(file)
        orders.send(str(os.waitpid(child, 0)[1]).encode())


def begin(order: dict, files: list[int]) -> None:
    """Sets streams, folder, environment and arguments of the process."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["replay", "record", *order["arguments"]]


if __name__ == "__main__":
    from replay.__main__ import main

    load()
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
