"""The summary of recorded tests at the end of a run."""

from typing import Any

from replay.pytest_plugin.session import Outcome, Session
from replay.support.units import format_size

_ROWS = 20
"""Maximum number of tests in the table without -v. Tests that did not pass are always in it."""
_WORDS = {
    "passed": "passed", "failed": "outside their limits", "new": "new", "not recorded": "not recorded",
}  # fmt: skip


def write_summary(terminal: Any, session: Session) -> None:
    """Writes the table, causes of failures, and counts; with -q, tests that passed are left out."""
    outcomes, verbosity = session.outcomes, session.config.get_verbosity()
    if not outcomes and not session.notes:
        return
    if verbosity >= 0:
        terminal.section("memory of recorded tests", sep="=", bold=True)
    shown, hidden = _shown(outcomes, verbosity)
    for line in _table(shown):
        terminal.write_line(line)
    if hidden and verbosity >= 0:
        terminal.write_line(f"... and {hidden} more that passed (-v shows all)")
    for line in [*_failures(outcomes), *_counts_and_notes(session)]:
        terminal.write_line(f"replay: {line}")


def _shown(outcomes: dict[str, Outcome], verbosity: int) -> tuple[dict[str, Outcome], int]:
    """Returns the tests of the table, and the number of those that are left out."""
    ordered = sorted(outcomes, key=lambda test: (outcomes[test]["state"] == "passed", test))
    unpassed = sum(each["state"] != "passed" for each in outcomes.values())
    rows = len(ordered) if verbosity > 0 else unpassed if verbosity < 0 else max(unpassed, _ROWS)
    return {test: outcomes[test] for test in ordered[:rows]}, max(0, len(ordered) - rows)


def _table(outcomes: dict[str, Outcome]) -> list[str]:
    if not outcomes:
        return []
    rows = [("test", "requested", "resident", "blowup", "arenas", ""), *map(_row, outcomes, outcomes.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(row[at].rjust(widths[at]) for at in range(1, 5)), row[5]]).rstrip()
        for row in rows
    ]


def _row(test: str, outcome: Outcome) -> tuple[str, ...]:
    if "figures" not in outcome:
        return test, "-", "-", "-", "-", outcome["state"]
    figures = outcome["figures"]
    return (
        test,
        format_size(outcome["requested"]),
        format_size(figures["resident_bytes_peak"]),
        f"{figures['blowup']:.2f}",
        f"{figures['arenas_peak']:,}",
        outcome["state"],
    )


def _failures(outcomes: dict[str, Outcome]) -> list[str]:
    """Returns a line for each failed test: its first finding and first cause."""
    return [
        "; ".join([f"{test}: {each['findings'][0]}", *each["causes"][:1]])
        for test, each in sorted(outcomes.items())
        if each["state"] == "failed"
    ]


def _counts_and_notes(session: Session) -> list[str]:
    """Returns lines with the counts, reasons of unrecorded tests, and notes of the session."""
    outcomes = session.outcomes.values()
    counts = {state: sum(each["state"] == state for each in outcomes) for state in _WORDS}
    lines = [", ".join(f"{count} {_WORDS[state]}" for state, count in counts.items() if count)] if outcomes else []
    if counts["new"]:
        lines.append(f"{counts['new']} without baseline, so not compared; --replay-update adds them")
    return [*lines, *sorted({each["reason"] for each in outcomes if "reason" in each}), *session.notes]
