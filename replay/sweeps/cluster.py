"""Runs of a sweep on the workers of a Dask cluster, or on processes of this machine that make one.

A worker loads each trace once, and keeps the last few. Work of a worker that dies is given to others by Dask; a run on
which several died is an outcome that says so.
"""

import logging
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import Any, Self

from replay.config import rebuild_config
from replay.support.errors import ReplayError
from replay.support.version import identity
from replay.sweeps.configurations import stack_key
from replay.sweeps.outcomes import Outcome, Task, do
from replay.sweeps.traces import Decoded, Input, decode

LOCAL = "local"
_ADDRESS = re.compile(r"local:[1-9]\d{0,2}|(?!local:)((tcp|tls|ws|wss|ucx)://)?([^\s/:]+|\[[^\s/]+\]):\d+/?")
TIMEOUT_S = 30.0
_GRACE_S = 1.0
"""So much later than Dask, which has more to tell, a wait is ended here."""
_TRACES_KEPT = 8
_UNDER_WAY_MAX = 256
"""Tasks that the scheduler knows of: enough for its workers, so few that outcomes come before all are handed out."""
_SILENT = logging.CRITICAL + 1
"""Dask logs lost connections as critical, each with a traceback; the messages here say what matters."""
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


def _within(timeout_s: float, what: Callable[[], Any]) -> Any:
    """Returns its result, or raises TimeoutError: Dask would wait forever for an open port that does not answer."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(what())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(timeout_s)


@contextmanager
def _children_without_interrupts() -> Iterator[None]:
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
                with _children_without_interrupts():
                    self._own = distributed.LocalCluster(
                        n_workers=int(count), threads_per_worker=1, silence_logs=_SILENT,
                        dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
                    )  # fmt: skip
            scheduler = self._own or address
            self._client = _within(
                timeout_s + _GRACE_S,
                lambda: distributed.Client(scheduler, timeout=timeout_s, set_as_default=False),
            )
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
        except Exception as error:  # whatever unpacking a function raises that is not there
            what = f"a worker cannot say which replay it has ({error}); install {identity()} there"
            raise ReplayError(f"--cluster {self._address}: {what}") from None
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

        waiting = iter(enumerate(tasks))
        under_way: dict[Any, Task] = {}
        completed = distributed.as_completed(loop=self._client.loop)

        def hand_out(count: int) -> None:
            for number, task in islice(waiting, count):
                future = self._client.submit(work, task, key=f"replay:{number}:{task.key}", pure=False)
                under_way[future] = task
                completed.add(future)

        def next_outcome() -> Outcome | None:
            """None if that was all."""
            try:
                future = next(completed, None)
                hand_out(1)
                return None if future is None else self._outcome(future, under_way.pop(future))
            except (OSError, CancelledError):
                raise self._lost() from None

        try:
            hand_out(_UNDER_WAY_MAX)
            while (outcome := next_outcome()) is not None:
                yield outcome
        finally:
            with suppress(Exception):  # the scheduler may be gone
                self._client.cancel(list(under_way))

    def _outcome(self, future: Any, task: Task) -> Outcome:
        error = future.exception()  # where a result died with its worker, this waits until it is made again
        if future.status == "cancelled":
            raise self._lost()
        if error is None:
            outcome: Outcome = future.result()
            return outcome
        message = str(error) if isinstance(error, ReplayError) else f"{type(error).__name__}: {error}"
        if type(error).__name__ == "KilledWorker":
            died = error.allowed_failures + 1
            message = f"{died} worker{'s' * (died > 1)} died over it; perhaps it wants more memory than they have"
        return Outcome(task.key, "failed", error=message, transient=True)

    def _lost(self) -> ReplayError:
        what = "the scheduler is lost; with --out, finished runs are kept, and --resume continues"
        return ReplayError(f"--cluster {self._address}: {what}")

    def close(self) -> None:
        for part in (getattr(self, "_client", None), self._own):
            if part is not None:
                with suppress(Exception):
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
