"""Checks the invariants of all models while a trace is simulated: `run(..., check=True)`, `replay run --check`."""

import traceback
from collections.abc import Iterable
from types import ModuleType

from replay.allocators import linux
from replay.simulation.simulator import Simulator
from replay.support.errors import ReplayError, TraceError


class InvariantError(TraceError):
    """A model broke one of its invariants: a bug of the model, which may have made wrong results."""


def check_invariants(simulators: Iterable[Simulator], row: int) -> None:
    """Raises InvariantError if a model's invariant does not hold after `row` rows of the trace."""
    if not __debug__:
        raise ReplayError("--check needs Python's assertions; leave out -O, and unset PYTHONOPTIMIZE")
    for process, simulator in enumerate(simulators):
        layers = [(linux, simulator.stack.linux), *simulator.models()]
        for model, state in layers:
            if not hasattr(model, "check"):
                continue
            try:
                model.check(state, simulator.stack)
            except AssertionError as error:
                raise _invariant_error(model, process, row, error) from error


def _invariant_error(model: ModuleType, process: int, row: int, error: AssertionError) -> InvariantError:
    """Returns the error for a failed assertion, with its message or else its source."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = str(error).partition("\n")[0] or place.line or "an assertion failed"
    name = model.__name__.rpartition(".")[2]
    of_process = f" in process {process}" if process else ""
    where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
    return InvariantError(
        f"the model {name!r} broke an invariant{of_process}: {what} ({where}); "
        "results are not valid: report this to the authors of the model, with the trace",
        row=row,
    )
