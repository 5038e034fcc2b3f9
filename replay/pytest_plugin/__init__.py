"""The plugin for pytest: records tests, simulates them with an allocator stack, and judges them.

`docs/pytest.md` is the documentation for users.

    __init__         hooks of pytest; imported in every run, so it imports little, and no hook runs for each test
    session          the tests to record, and their results
    recording        records a test, or a block of a test
    worker_process   starts the worker process and sends requests to it
    summary          the table at the end
    worker           the worker process, with `arguments`, `measuring`, `judging` and `explanations`

Only the worker process imports the rest of replay, NumPy and numba.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from replay.pytest_plugin.recording import Allocations
    from replay.pytest_plugin.session import Session

MARK = "replay"
FIXTURE = "allocations"


def thread_roots() -> dict[int, Any]:
    """Returns the outermost frame of each other thread by its number. A later thread can reuse only the number."""
    frames: dict[int, Any] = getattr(sys, "_current_frames", dict)()  # not in every Python implementation
    frames.pop(threading.get_ident(), None)
    for number, frame in frames.items():
        while frame.f_back is not None:
            frame = frame.f_back
        frames[number] = frame
    return frames


EARLIER_THREADS = thread_roots()
"""Threads that ran before pytest loaded code of the project, e.g. the one that receives the next tests in a worker of
pytest-xdist. Their allocations do not belong to the tests and are not recorded."""
_SESSION: pytest.StashKey[Session] = pytest.StashKey()
_HELP = (
    "replay(max_<metric>=..., min_<metric>=..., max_pinned={...}, tolerances=[...], allocator=..., set={...}, "
    "env={...}, enabled=True): record the test, simulate it with an allocator stack, and fail it if a limit is "
    "exceeded (docs/pytest.md)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("replay", "memory use of tests, recorded and simulated")
    add = group.addoption
    add("--replay-baseline", metavar="FILE", help="baseline to compare recorded tests with")
    add("--replay-update", action="store_true", help="write new and changed results of this run to the baseline")
    add("--replay-traces", metavar="DIR", help="recordings: written with --replay-update, else used to find causes")
    parser.addini(
        "replay_limits", "limits for all tests, which are all recorded, e.g. resident_bytes_peak<=64MiB", "linelist"
    )
    parser.addini("replay_tolerances", "accepted differences of recorded tests from the baseline", "linelist")
    parser.addini("replay_allocator", "preset or YAML file to simulate recorded tests with")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _HELP)
    if config.getoption("replay_baseline"):
        _session(config)
    elif config.getoption("replay_update") or config.getoption("replay_traces"):
        raise pytest.UsageError("--replay-update and --replay-traces require --replay-baseline FILE")


def _session(config: pytest.Config) -> Session:
    """Returns the session, which is created at its first use: not at all if nothing is recorded."""
    if _SESSION not in config.stash:
        from replay.pytest_plugin.session import Session

        config.stash[_SESSION] = Session(config)
    return config.stash[_SESSION]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Finds the tests to record and replaces their `runtest`. Other tests run as before."""
    if config.getini("replay_limits"):
        chosen = items
    else:
        above: dict[Any, bool] = {}
        chosen = []
        for item in items:
            parent = item.parent
            if parent not in above:
                above[parent] = parent is not None and parent.get_closest_marker(MARK) is not None
            if above[parent] or (item.own_markers and any(mark.name == MARK for mark in item.own_markers)):
                chosen.append(item)
    if chosen:
        try:
            _record(_session(config), chosen)
        except pytest.UsageError as mistake:
            _refuse(config, items, mistake)


def _record(session: Session, items: list[pytest.Item]) -> None:
    """Replaces `runtest` of the tests to record, so that set-up and teardown of fixtures are not recorded."""
    if tests := session.choose(items):
        from replay.pytest_plugin.recording import RecordedTest

        for item, layers in tests:
            item.runtest = RecordedTest(session, item, layers)  # type: ignore[method-assign]


def _refuse(config: pytest.Config, items: list[pytest.Item], mistake: pytest.UsageError) -> None:
    """Ends the run before the first test. A worker of pytest-xdist can only report that its collection failed."""
    if not hasattr(config, "workerinput"):
        raise mistake
    report = pytest.CollectReport(items[0].nodeid, "failed", longrepr=str(mistake), result=[])
    config.hook.pytest_collectreport(report=report)
    items.clear()


@pytest.fixture
def allocations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Allocations:
    """Records blocks of a test: `with allocations() as seen: ...`; `seen.peak` and other properties are the results."""
    from replay.pytest_plugin.recording import Allocations

    return Allocations(_session(request.config), request.node.nodeid, tmp_path_factory)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _SESSION in session.config.stash:
        session.config.stash[_SESSION].finish(session)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds the results of a worker of pytest-xdist that has ended."""
    outcomes = getattr(node, "workeroutput", {}).get(MARK)
    if outcomes:
        _session(node.config).outcomes.update(outcomes)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _SESSION in config.stash:
        from replay.pytest_plugin.summary import write_summary

        write_summary(terminalreporter, config.stash[_SESSION])
