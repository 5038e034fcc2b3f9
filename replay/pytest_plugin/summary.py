"""What recorded tests came to, at the end of a run."""

from typing import Any

from replay.pytest_plugin.session import Outcome, Session
from replay.support.units import format_size

_ROWS = 20
"""Tests in the table that passed, unless -v is given; all others always are."""
_WORDS = {
    "passed": "passed", "failed": "not within what they may take", "new": "new", "not recorded": "not recorded",
}  # fmt: skip


def write_summary(terminal: Any, session: Session) -> None:
    """A table of recorded tests, why some failed, and a line that counts; with -q only what did not pass, and that."""
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
    for line in [*_why(outcomes), *_told(session)]:
        terminal.write_line(f"replay: {line}")


def _shown(outcomes: dict[str, Outcome], verbosity: int) -> tuple[dict[str, Outcome], int]:
    """What goes into the table, and how many do not."""
    ordered = sorted(outcomes, key=lambda test: (outcomes[test]["state"] == "passed", test))
    told = sum(each["state"] != "passed" for each in outcomes.values())
    rows = len(ordered) if verbosity > 0 else told if verbosity < 0 else max(told, _ROWS)
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


def _why(outcomes: dict[str, Outcome]) -> list[str]:
    """Of each test that failed, the first of what is wrong and of what brought it."""
    return [
        "; ".join([f"{test}: {each['findings'][0]}", *each["causes"][:1]])
        for test, each in sorted(outcomes.items())
        if each["state"] == "failed"
    ]


def _told(session: Session) -> list[str]:
    """Counts, and what else there is to say."""
    outcomes = session.outcomes.values()
    counts = {state: sum(each["state"] == state for each in outcomes) for state in _WORDS}
    lines = [", ".join(f"{count} {_WORDS[state]}" for state, count in counts.items() if count)] if outcomes else []
    if counts["new"]:
        lines.append(f"{counts['new']} without baseline, so not compared; --replay-update adds them")
    return [*lines, *sorted({each["reason"] for each in outcomes if "reason" in each}), *session.notes]
