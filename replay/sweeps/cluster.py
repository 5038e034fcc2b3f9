"""Runs of a sweep on the workers of a Dask cluster, or on processes of this machine that make one.

A worker loads each trace once, and keeps the last few. Work of a worker that dies is given to others by Dask; a run on
which several died is an outcome that says so.
"""

import logging
import re
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import Any, Self

from replay.config import rebuild_config
from replay.errors import ReplayError
from replay.sweeps.configurations import stack_key
from replay.sweeps.outcomes import Outcome, Task, do
from replay.sweeps.traces import Decoded, Input, decode
from replay.version import identity

LOCAL = "local"
_ADDRESS = re.compile(r"local:[1-9]\d{0,2}|(?!local:)((tcp|tls|ws|wss|ucx)://)?([^\s/:]+|\[[^\s/]+\]):\d+/?")
TIMEOUT_S = 30.0
_TRACES_KEPT = 8
_UNDER_WAY_MAX = 256
"""Tasks that the scheduler knows of: enough for its workers, so few that outcomes come before all are handed out."""
_SILENT = logging.CRITICAL + 1
"""Dask tells of lost connections as critical, and has tracebacks of each: what matters of that is said here."""
_NEWCOMER = "pip install 'alloc-replay[cluster]'"

_traces: dict[Input, Decoded] = {}
"""Of this process, if it is a worker: the traces last used."""
_loading = threading.Lock()


def _load(what: Input) -> Decoded:
    with _loading:
        decoded = _traces.pop(what, None) or decode(what)
        _traces[what] = decoded  # behind the others: the last used
        while len(_traces) > _TRACES_KEPT:
            del _traces[next(iter(_traces))]
        return decoded


def work(task: Task) -> Outcome:
    """What a worker does."""
    if task.version != identity():
        raise ReplayError(f"a worker has replay {identity()}, the sweep is by {task.version}")
    if stack_key(rebuild_config(task.stack)) not in task.key:
        raise ReplayError("a worker has another version of an allocator model of another package")
    return do(task, _load)


def _silence() -> None:
    """Some of Dask's loggers have a level of their own, which that of the one above does not change."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(_SILENT)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here do not hear Ctrl-C, which a terminal sends to all: the sweep ends them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Cluster:
    """An engine; to be used in a `with`."""

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """`address` of a scheduler, or `local:4` for so many processes here."""
        if not _ADDRESS.fullmatch(address):
            raise ReplayError(f"--cluster {address}: write it like local:4 or tcp://scheduler:8786")
        try:
            import distributed
        except ImportError:
            raise ReplayError(f"a cluster needs Dask; {_NEWCOMER}") from None
        _silence()
        self._address, self._own = address, None
        kind, _, count = address.partition(":")
        try:
            if kind == LOCAL:
                with _deaf_children():
                    self._own = distributed.LocalCluster(
                        n_workers=int(count), threads_per_worker=1, dashboard_address=None, silence_logs=_SILENT
                    )
            self._client = distributed.Client(self._own or address, timeout=timeout_s, set_as_default=False)
            self._client.wait_for_workers(1, timeout=timeout_s)
            self._refuse_strangers()
        except ReplayError:
            self.close()
            raise
        except Exception as error:  # whatever else listens there may answer anything
            self.close()
            reason = str(error).partition("\n")[0] or "no answer"
            raise ReplayError(f"--cluster {address}: no scheduler answers within {timeout_s:g} s ({reason})") from None

    def _refuse_strangers(self) -> None:
        try:
            versions = self._client.run(identity)
        except (ImportError, AttributeError) as error:
            raise ReplayError(
                f"--cluster {self._address}: a worker has no replay, or another one ({error}); "
                f"install {identity()} there"
            ) from None
        for worker, found in versions.items():
            if found != identity():
                raise ReplayError(
                    f"--cluster {self._address}: worker {worker} has replay {found}, and this is "
                    f"{identity()}; install the same everywhere"
                )

    def keep(self, inputs: Sequence[Input]) -> None:
        """Workers keep the last ones by themselves."""

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        import distributed

        left = iter(enumerate(tasks))
        under_way: dict[Any, Task] = {}
        completed = distributed.as_completed(loop=self._client.loop)

        def hand_out(count: int) -> None:
            for number, task in islice(left, count):
                future = self._client.submit(work, task, key=f"replay:{number}:{task.key}", pure=False)
                under_way[future] = task
                completed.add(future)

        try:
            hand_out(_UNDER_WAY_MAX)
            for future in completed:
                hand_out(1)
                yield self._outcome(future, under_way.pop(future))
        finally:
            with suppress(Exception):  # the scheduler may be gone
                self._client.cancel(list(under_way))

    def _outcome(self, future: Any, task: Task) -> Outcome:
        if future.status == "finished":
            outcome: Outcome = future.result()
            return outcome
        if future.status in ("cancelled", "lost"):
            what = "the scheduler is lost; with --out, what is done is kept, and --resume goes on"
            raise ReplayError(f"--cluster {self._address}: {what}")
        error = future.exception()
        said = str(error) if isinstance(error, ReplayError) else f"{type(error).__name__}: {error}"
        return Outcome(task.key, "failed", error=said, transient=True)

    def close(self) -> None:
        for part in (getattr(self, "_client", None), self._own):
            if part is not None:
                with suppress(Exception):
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
