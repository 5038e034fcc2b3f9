"""An engine that runs the tasks of a sweep on the workers of a Dask cluster, or on local processes.

A worker loads each trace once and caches the last few. If a worker dies, Dask gives its tasks to other workers. A task
that killed several workers has a failed outcome.
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
"""Additional seconds before a wait is ended here, because Dask's own timeout has a better message."""
_TRACES_KEPT = 8
_RUNNING_MAX = 256
"""Maximum number of submitted tasks: enough for all workers, and the first outcomes arrive before the last
submission."""
_SILENT = logging.CRITICAL + 1
"""A log level above all messages: Dask logs lost connections as critical with a traceback; errors here are enough."""
_INSTALL = "pip install 'alloc-replay[cluster]'"

_traces: dict[Input, Decoded] = {}
"""In a worker: the traces that were used last."""
_loading = threading.Lock()


def _load(function: Input) -> Decoded:
    with _loading:
        decoded = _traces.pop(function, None) or decode(function)
        _traces[function] = decoded  # at the end, because it was used last
        while len(_traces) > _TRACES_KEPT:
            del _traces[next(iter(_traces))]
        return decoded


def work(task: Task) -> Outcome:
    """Runs a task in a worker."""
    if task.version != identity():
        raise ReplayError(f"a worker has replay {identity()}, but the sweep was started by {task.version}")
    if stack_key(rebuild_config(task.stack)) not in task.key:
        raise ReplayError("a worker has another version of a third-party allocator model")
    return do(task, _load)


def _silence() -> None:
    """Silences all of Dask's loggers, because some do not inherit the level of their parent."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(_SILENT)


def _with_timeout(timeout_s: float, function: Callable[[], Any]) -> Any:
    """Returns the result of a function, or raises TimeoutError: Dask waits forever if an open port does not answer."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(timeout_s)


@contextmanager
def _children_without_interrupts() -> Iterator[None]:
    """Makes processes that start in this block ignore Ctrl-C, which a terminal sends to all. The sweep ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Cluster:
    """The engine, a context manager."""

    def __init__(self, address: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Connects to a scheduler at `address`, or starts local processes: `local:4` starts four."""
        if not _ADDRESS.fullmatch(address):
            raise ReplayError(f"--cluster {address}: write it like local:4 or tcp://scheduler:8786")
        try:
            import distributed
        except ImportError:
            raise ReplayError(f"a cluster needs Dask; {_INSTALL}") from None
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
            self._client = _with_timeout(
                timeout_s + _GRACE_S,
                lambda: distributed.Client(scheduler, timeout=timeout_s, set_as_default=False),
            )
            self._client.wait_for_workers(1, timeout=timeout_s)
            self._refuse_other_versions()
        except ReplayError:
            self.close()
            raise
        except Exception as error:  # another server at this address can cause any exception
            self.close()
            reason = str(error).partition("\n")[0] or "no answer"
            raise ReplayError(f"--cluster {address}: no scheduler answers within {timeout_s:g} s ({reason})") from None

    def _refuse_other_versions(self) -> None:
        try:
            versions = self._client.run(identity)
        except Exception as error:  # unpickling a missing function can raise any exception
            message = f"a worker cannot report its version of replay ({error}); install {identity()} there"
            raise ReplayError(f"--cluster {self._address}: {message}") from None
        for worker, found in versions.items():
            if found != identity():
                raise ReplayError(
                    f"--cluster {self._address}: worker {worker} has replay {found}, and this is "
                    f"{identity()}; install the same everywhere"
                )

    def keep(self, inputs: Sequence[Input]) -> None:
        """Does nothing: workers cache the last traces."""

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        import distributed

        waiting = iter(enumerate(tasks))
        running: dict[Any, Task] = {}
        completed = distributed.as_completed(loop=self._client.loop)

        def submit(count: int) -> None:
            for number, task in islice(waiting, count):
                future = self._client.submit(work, task, key=f"replay:{number}:{task.key}", pure=False)
                running[future] = task
                completed.add(future)

        def next_outcome() -> Outcome | None:
            """Returns the next outcome; None after the last one."""
            try:
                future = next(completed, None)
                submit(1)
                return None if future is None else self._outcome(future, running.pop(future))
            except (OSError, CancelledError):
                raise self._lost() from None

        try:
            submit(_RUNNING_MAX)
            while (outcome := next_outcome()) is not None:
                yield outcome
        finally:
            with suppress(Exception):  # the scheduler may be lost
                self._client.cancel(list(running))

    def _outcome(self, future: Any, task: Task) -> Outcome:
        error = future.exception()  # waits if the result was lost with its worker and is computed again
        if future.status == "cancelled":
            raise self._lost()
        if error is None:
            outcome: Outcome = future.result()
            return outcome
        message = str(error) if isinstance(error, ReplayError) else f"{type(error).__name__}: {error}"
        if type(error).__name__ == "KilledWorker":
            died = error.allowed_failures + 1
            message = f"{died} worker{'s' * (died > 1)} died during this run; it may need more memory than they have"
        return Outcome(task.key, "failed", error=message, transient=True)

    def _lost(self) -> ReplayError:
        message = "the connection to the scheduler is lost; with --out, finished runs are saved, and --resume continues"
        return ReplayError(f"--cluster {self._address}: {message}")

    def close(self) -> None:
        for part in (getattr(self, "_client", None), self._own):
            if part is not None:
                with suppress(Exception):
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
