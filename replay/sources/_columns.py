"""Messages about the columns of a file, for the formats that have columns."""

from replay.support.names import nearest, printable
from replay.trace import COLUMNS


def unknown_column(name: str) -> str:
    """Returns the error message for a column that no trace has."""
    return f"column `{printable(name)}` is unknown; `replay import --lenient` leaves it out; {nearest(name, COLUMNS)}"


def duplicate_column(name: str) -> str:
    """Returns the error message for the second column of a name."""
    return f"column `{name}` occurs twice"
