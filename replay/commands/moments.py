"""The option `--at`: a moment of a run."""

from typing import Annotated

import typer

from replay.support.errors import ReplayError
from replay.support.names import nearest

At = Annotated[
    str, typer.Option(metavar="MOMENT", help="end, peak, a time such as 1.5s, or the name of a phase: its start.")
]
OptionalAt = Annotated[
    str | None,
    typer.Option(metavar="MOMENT", help="end, peak, a time such as 1.5s, or a phase: its start. Default: end."),
]


def parse_moment(text: str, phases: tuple[str, ...]) -> str | int:
    """Returns a moment as a label of snapshots, or in nanoseconds since the first event."""
    from replay.support.units import parse_time_with_unit

    known = ["end", "peak", *phases]
    if text in known:
        return text
    try:
        return parse_time_with_unit(text)
    except ValueError:
        raise ReplayError(f"--at {text}: is neither a time such as 1.5s nor a phase; {nearest(text, known)}") from None
