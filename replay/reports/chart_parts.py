"""Parts of all charts of sweeps: Altair, colours, sizes, units of axes, and whether differences matter."""

from typing import Any

from replay.support.errors import ReplayError
from replay.sweeps.analysis import front_table
from replay.sweeps.results import Results
from replay.sweeps.verdict import judge

WIDTH = 640
BEST, OTHER, DEFAULT = "#1b6ca8", "#9aa5b1", "#d1495b"
TEXT, SUBTITLE = "#333333", "#555555"
RAMP, ON_PALE, ON_STRONG = ("#e3eef9", "#0a4a90"), "#222222", "#ffffff"
"""The ends of the colour ramp of a heat map, and the colours of text on them."""
IN_DARK = {
    BEST: "#4aa3dd", OTHER: "#77818c", DEFAULT: "#f0798a", TEXT: "#e8eaec", SUBTITLE: "#a0a8b2",
    RAMP[0]: "#24405f", RAMP[1]: "#a9d3f8", ON_PALE: "#e8eaec", ON_STRONG: "#14171b",
}  # fmt: skip
"""What replaces each of these colours in the dark theme of a page."""
LABEL_WIDTH, TITLE_WIDTH = 110, 17
"""Widths to the left of a plot, equal in all charts so that plots are aligned: labels of the axis; its title."""
_UNITS = {
    "_bytes": (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)),
    "_ns": (("s", 10**9), ("ms", 10**6), ("µs", 10**3), ("ns", 1)),
}
"""Units by the part of a metric's name that has its kind (bytes, times); largest unit first."""


def import_altair() -> Any:
    """Returns the module altair; raises ReplayError if it, or a package that it needs to write files, is missing."""
    try:
        import altair
        import vl_convert  # noqa: F401 - altair writes files with it
    except ImportError:
        raise ReplayError("charts require Altair; pip install 'alloc-replay[charts]'") from None
    return altair


def unit_of(results: Results, metric: str) -> tuple[float, str]:
    """Returns the divisor of a metric's values on an axis, and the title of the axis."""
    if not results.has_one_source:
        return 1.0, f"{metric}, ratio to the default"
    highest = max(front_table(results, [metric])[metric])
    for part, units in _UNITS.items():
        if part in metric:
            unit, size = next((each for each in units if highest >= each[1]), units[-1])
            return float(size), f"{metric}, {unit}"
    return 1.0, metric


def differences_matter(results: Results, metric: str, within: float) -> bool:
    """Whether configurations differ by more than the share `within` for any trace."""
    return any(each.matters for each in judge(results, [metric], within=within).spreads)
