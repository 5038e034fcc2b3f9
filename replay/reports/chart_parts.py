"""What the charts of sweeps share: Altair, colours, sizes, units of axes, and whether differences matter."""

from typing import Any

from replay.support.errors import ReplayError
from replay.sweeps.analysis import front_table
from replay.sweeps.results import Results
from replay.sweeps.verdict import judge

WIDTH = 640
BEST, OTHER, DEFAULT = "#1b6ca8", "#9aa5b1", "#d1495b"
LABEL_WIDTH, TITLE_WIDTH = 110, 17
"""Left of the plots, which so lie below one another: labels of an axis; of these, a line of its title."""
_UNITS = {
    "_bytes": (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)),
    "_ns": (("s", 10**9), ("ms", 10**6), ("µs", 10**3), ("ns", 1)),
}
"""Units by the part of a metric's name that says what it measures, largest first."""


def import_altair() -> Any:
    """The module altair, with what it needs to write files."""
    try:
        import altair
        import vl_convert  # noqa: F401 - altair writes files with it
    except ImportError:
        raise ReplayError("charts require Altair; pip install 'alloc-replay[charts]'") from None
    return altair


def unit_of(results: Results, metric: str) -> tuple[float, str]:
    """The divisor of a metric's values on an axis, and the title of the axis."""
    if not results.has_one_source:
        return 1.0, f"{metric}, ratio to the default"
    highest = max(front_table(results, [metric])[metric])
    for part, units in _UNITS.items():
        if part in metric:
            unit, size = next((each for each in units if highest >= each[1]), units[-1])
            return float(size), f"{metric}, {unit}"
    return 1.0, metric


def differences_matter(results: Results, metric: str, within: float) -> bool:
    """Whether configurations differ by more than the share `within` over any trace."""
    return any(each.matters for each in judge(results, [metric], within=within).spreads)
