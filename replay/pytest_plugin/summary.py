"""What recorded tests came to, at the end of a run."""

from typing import Any

from replay.pytest_plugin.session import Outcome, Session
from replay.units import format_size

_ROWS = 20
"""Tests in the table that passed, unless -v is given; all others always are."""
_WORDS = {"passed": "passed", "failed": "over its limits or baseline", "new": "new", "not recorded": "not recorded"}


def write_summary(terminal: Any, session: Session) -> None:
    """A table of recorded tests and a line that counts them; with -q only what did not pass, and the line."""
    outcomes, verbosity = session.outcomes, session.config.get_verbosity()
    if not outcomes and not session.notes:
        return
    terminal.section("memory of recorded tests", sep="=", bold=True) if verbosity >= 0 else None
    shown, hidden = _shown(outcomes, verbosity)
    for line in _table(shown):
        terminal.write_line(line)
    if hidden and verbosity >= 0:
        terminal.write_line(f"... and {hidden} more that passed (-v shows all)")
    for line in _told(session):
        terminal.write_line(line)


def _shown(outcomes: list[Outcome], verbosity: int) -> tuple[list[Outcome], int]:
    ordered = sorted(outcomes, key=lambda each: (each["state"] == "passed", each["test"]))
    told = sum(each["state"] != "passed" for each in ordered)
    rows = len(ordered) if verbosity > 0 else told if verbosity < 0 else max(told, _ROWS)
    return ordered[:rows], len(ordered) - min(rows, len(ordered))


def _table(outcomes: list[Outcome]) -> list[str]:
    if not outcomes:
        return []
    rows = [("test", "asked for", "resident", "blowup", "arenas", ""), *map(_row, outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(row[at].rjust(widths[at]) for at in range(1, 5)), row[5]]).rstrip()
        for row in rows
    ]


def _row(outcome: Outcome) -> tuple[str, ...]:
    if "figures" not in outcome:
        return outcome["test"], "-", "-", "-", "-", outcome["state"]
    figures = outcome["figures"]
    return (
        outcome["test"],
        format_size(outcome["requested"]),
        format_size(figures["resident_bytes_peak"]),
        f"{figures['blowup']:.2f}",
        f"{figures['arenas_peak']:,}",
        outcome["state"],
    )


def _told(session: Session) -> list[str]:
    """Counts, and what else there is to say."""
    counts = {state: sum(each["state"] == state for each in session.outcomes) for state in _WORDS}
    lines = []
    if session.outcomes:
        told = ", ".join(f"{count} {_WORDS[state]}" for state, count in counts.items() if count)
        lines.append(f"replay: {told}")
    if counts["new"]:
        lines.append(f"replay: {counts['new']} without baseline, so not compared; --replay-update takes them in")
    lines += [
        f"replay: {reason}" for reason in sorted({each["reason"] for each in session.outcomes if "reason" in each})
    ]
    return [*lines, *(f"replay: {note}" for note in session.notes)]
