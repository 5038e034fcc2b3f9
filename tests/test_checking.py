"""`replay run --check`: a model that breaks an invariant is found, with the model, the row and the invariant."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import invoke, run_python
from dist_info import write_dist_info
from histories import History, seeded
from test_own_counters import SHELF, two_processes

from replay.allocators import _registry, find_model
from replay.analysis import metrics
from replay.config import StackConfig, load_config
from replay.simulation.checking import InvariantError
from replay.simulation.run import run
from replay.simulation.walk import Walk
from replay.sources.parquet import write_trace

MISCOUNTED = 13
CHECK = """

def check(state, stack):
    used = int((state.blocks["bytes"] > 0).sum())
    assert used <= 2, "more than two blocks"
    assert used == stack.tally[0].shelf_mappings
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackConfig]:
    """A stack with a model of two invariants: three live blocks break one, a block of MISCOUNTED bytes the other."""
    source = (SHELF + CHECK).replace(
        "tally.shelf_calls", f"tally.shelf_mappings += size == {MISCOUNTED}; tally.shelf_calls"
    )
    (tmp_path / "planted_model.py").write_text(source.replace("shelf_", "planted_"))
    write_dist_info(tmp_path, "replay.allocators", {"planted": "planted_model"})
    monkeypatch.syspath_prepend(tmp_path)
    caches = (_registry._third_party, find_model, metrics._usable_own_metrics)
    for each in caches:
        each.cache_clear()
    yield load_config("cpython-3.12-malloc", ["domains.libc=planted"])
    for each in caches:
        each.cache_clear()
    sys.modules.pop("planted_model", None)


def history(*sizes: int) -> History:
    """Blocks of these sizes; a mark, which ends a slice; and the free of the first block."""
    made = History()
    for size in sizes:
        made.malloc(size)
    made.mark(0)
    made.free(0)
    return made


def violation(made: History, stack: StackConfig) -> str:
    with pytest.raises(InvariantError) as caught:
        run(made.trace("malloc_trim"), stack, check=True)
    return str(caught.value)


def test_a_broken_invariant_is_an_error_with_model_row_and_message(planted: StackConfig) -> None:
    found = violation(history(1, 2, 3), planted)
    assert found.startswith(
        "row 3: the model 'planted_model' broke an invariant: more than two blocks (planted_model.py:"
    )
    assert found.endswith("results are not valid: report this to the authors of the model, with the trace")


def test_an_invariant_without_a_message_is_shown_as_its_source(planted: StackConfig) -> None:
    found = violation(history(MISCOUNTED), planted)
    assert "broke an invariant: assert used == stack.tally[0].planted_mappings (planted_model.py:" in found


def test_a_process_is_named_if_there_are_several(planted: StackConfig) -> None:
    trace = two_processes()
    (events,) = trace.batches()
    events.size[3] = MISCOUNTED
    with pytest.raises(InvariantError, match="the model 'planted_model' broke an invariant in process 1: assert used"):
        run(trace, planted, check=True)


def test_without_check_the_same_trace_is_simulated(planted: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk, "checks", False)
    assert run(history(1, 2, 3).trace("malloc_trim"), planted).events == 5


def test_the_command_names_the_file_and_exits_with_2(planted: StackConfig, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_trace(history(1, 2, 3).trace("malloc_trim"), path)
    words = ["run", path, "-a", "cpython-3.12-malloc", "--set", "domains.libc=planted", "--no-reference"]
    assert str(invoke(*words, "--check").exception).startswith(f"{path}: row 3: the model 'planted_model' broke")
    if not Walk.checks:
        assert invoke(*words).exit_code == 0


@pytest.mark.parametrize("name", ["cpython-3.12", "cpython-3.12-malloc", "ideal", "bump"])
def test_a_check_changes_no_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, stack = seeded(3, 2000).trace(), load_config(name)
    checked = run(trace, stack, check=True)
    monkeypatch.setattr(Walk, "checks", False)
    assert checked.end.tobytes() == run(trace, stack).end.tobytes()


@pytest.mark.system
def test_a_python_without_assertions_refuses_to_check(source: str) -> None:
    done = run_python("-O", "-m", "replay", "run", source, "-a", "bump", "--no-reference", "--check")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "replay: --check needs Python's assertions; leave out -O, and unset PYTHONOPTIMIZE"
    )
