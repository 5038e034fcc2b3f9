"""The plugin for pytest: records tests, simulates them on an allocator stack, and judges them.

`docs/pytest.md` is for those who use it.

    here         the hooks that pytest calls; imported in every run, so it imports nothing, and no hook runs per test
    session      which tests are recorded, and the results
    recording    a test, or a block of one, recorded
    companion    starts the process beside the tests and asks it
    summary      the table at the end
    beside       what runs in that process, with `arguments`, `looking`, `judging` and `keeping`

Only what is in `beside` and behind it imports the rest of replay, NumPy and numba.
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
    """The outermost frame of every other thread, which distinguishes it from a later thread with its number."""
    frames: dict[int, Any] = getattr(sys, "_current_frames", dict)()  # only CPython is sure to have it
    frames.pop(threading.get_ident(), None)
    for number, frame in frames.items():
        while frame.f_back is not None:
            frame = frame.f_back
        frames[number] = frame
    return frames


EARLIER_THREADS = thread_roots()
"""Threads that ran before pytest loaded anything of a project, such as the one by which a worker of pytest-xdist hears
of its next tests. What they do, and when, is not the tests'."""
_SESSION: pytest.StashKey[Session] = pytest.StashKey()
_HELP = (
    "replay(max_<metric>=..., min_<metric>=..., tolerances=[...], allocator=..., set={...}, env={...}, enabled=True): "
    "record the test, simulate it with an allocator stack, and fail it if a limit is exceeded (docs/pytest.md)"
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
        raise pytest.UsageError("--replay-update and --replay-traces go with --replay-baseline FILE")


def _session(config: pytest.Config) -> Session:
    """Created at the first use: not at all if nothing is recorded."""
    if _SESSION not in config.stash:
        from replay.pytest_plugin.session import Session

        config.stash[_SESSION] = Session(config)
    return config.stash[_SESSION]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Finds the tests to record, and has only those run otherwise."""
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
    """Has those of the tests that want it recorded when pytest runs them, between set-up and teardown of fixtures."""
    if wishes := session.choose(items):
        from replay.pytest_plugin.recording import RecordedTest

        for item, layers in wishes:
            item.runtest = RecordedTest(session, item, layers)  # type: ignore[method-assign]


def _refuse(config: pytest.Config, items: list[pytest.Item], mistake: pytest.UsageError) -> None:
    """Ends the run before a test was run. A worker of pytest-xdist can only say that its collection failed."""
    if not hasattr(config, "workerinput"):
        raise mistake
    report = pytest.CollectReport(items[0].nodeid, "failed", longrepr=str(mistake), result=[])
    config.hook.pytest_collectreport(report=report)
    items.clear()


@pytest.fixture
def allocations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Allocations:
    """Records blocks of a test: `with allocations() as seen: ...`; then `seen.peak` and others tell what was seen."""
    from replay.pytest_plugin.recording import Allocations

    return Allocations(_session(request.config), request.node.nodeid, tmp_path_factory)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _SESSION in session.config.stash:
        session.config.stash[_SESSION].finish(session)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over the results of a worker of pytest-xdist that has ended."""
    outcomes = getattr(node, "workeroutput", {}).get(MARK)
    if outcomes:
        _session(node.config).outcomes.update(outcomes)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _SESSION in config.stash:
        from replay.pytest_plugin.summary import write_summary

        write_summary(terminalreporter, config.stash[_SESSION])
