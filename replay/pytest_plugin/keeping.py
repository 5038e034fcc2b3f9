"""Measured tests taken into a baseline."""

from collections.abc import Mapping
from pathlib import Path

from replay.errors import ReplayError
from replay.gates.baselines import Baseline, Figure, Measured, read_baseline, write_baseline


def take_in(path: Path, measured: Mapping[str, Measured], *, widen: bool) -> dict[str, int]:
    """Writes the baseline with these tests in it, and leaves what it has of others; tells how many were new.

    With `widen` a test that is in it keeps its figures, and the range that they were seen in grows by the present ones.
    """
    try:
        before = read_baseline(path) if path.exists() else Baseline()
    except ReplayError as mistake:
        raise ReplayError(f"{mistake} (or remove the file, and begin a new one)") from None
    counts = {"new": 0, "changed": 0, "same": 0}
    cases = {}
    for name, now in measured.items():
        known = before.cases.get(name)
        cases[name] = _widened(known, now) if known and widen and known.stack == now.stack else now
        counts["new" if known is None else "same" if cases[name] == known else "changed"] += 1
    write_baseline(path, before.with_cases(cases), force=True)
    return counts


def _widened(known: Measured, now: Measured) -> Measured:
    figures = {
        metric: Figure(value=old.value, low=min(old.low, new.low), high=max(old.high, new.high))
        for metric, new in now.figures.items()
        for old in [known.figures.get(metric, new)]
    }
    return now.model_copy(update={"figures": figures})
