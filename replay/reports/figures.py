"""Figures as text: metrics in their unit, values of parameters, differences."""

from typing import Any

from replay.analysis.metrics import known_metrics, own_counter
from replay.support.units import format_size, format_time, parse_size
from replay.sweeps.results import Results


def format_value(value: Any) -> str:
    """Returns a parameter's value as text; multiples of 1024 in KiB or a larger unit."""
    if value is None:
        return "default"
    if isinstance(value, str) and " to " in value:  # a quarter of many values
        return " to ".join(format_value(each) for each in value.split(" to "))
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1024 and value % 1024 == 0:
        return format_size(value).replace(".00", "").replace(".0 ", " ")
    return str(value)


def format_metric(metric: str, value: float) -> str:
    """Returns a metric's value as text, in the unit of its name."""
    assert metric in known_metrics()
    own = own_counter(metric)
    if "_bytes" in metric or (own and own.unit == "bytes"):
        return format_size(round(value))
    if "_ns" in metric or (own and own.unit == "ns"):
        return format_time(value)
    if metric == "blowup" or "fragmentation" in metric:
        return f"{value:.3f}"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def format_pair(metric: str, first: float, second: float) -> tuple[str, str]:
    """Returns two values of a metric as text, with so many digits that their difference is nearly the exact one."""
    texts = format_metric(metric, first), format_metric(metric, second)
    if not texts[0].endswith("iB") or not texts[1].endswith("iB") or first == second:
        return texts
    unit_bytes = max(_unit_bytes(text) for text in texts)
    unit = next(text.split()[1] for text in texts if _unit_bytes(text) == unit_bytes)
    values = first / unit_bytes, second / unit_bytes
    decimals = 1 if min(values) >= 10 else 2
    difference = values[1] - values[0]
    while decimals < _DECIMALS and abs(
        round(values[1], decimals) - round(values[0], decimals) - difference
    ) > _AGREEMENT * abs(difference):
        decimals += 1
    return f"{values[0]:.{decimals}f} {unit}", f"{values[1]:.{decimals}f} {unit}"


def format_judged(results: Results, metric: str, value: float) -> str:
    """Returns the value that ranks configurations: the metric of one trace, or the mean ratio to the default of
    several."""
    return format_metric(metric, value) if results.has_one_source else f"{value:.3f} ×"


def format_share(share: float | None) -> str:
    """Returns a share as a percentage. A small share is not shown as zero; None is a difference to 0."""
    if share is None:
        return "from 0"
    percentage = 100 * share
    return "< 0.1 %" if 0 < percentage < 0.05 else f"{percentage:.1f} %"


def format_limit(share: float) -> str:
    """Returns a limit in percent with all digits: `1 %`, `0.5 %`."""
    return f"{100 * share:.12g} %"


def format_change(metric: str, ratio: float | None, value: float, default: float | None) -> str:
    """Returns the difference to the default as a percentage, a large one as a factor; the value if the default is 0."""
    if ratio is None:
        return "-"
    if default == 0 and value:
        return f"+{format_metric(metric, value)}"
    if ratio >= _FACTOR:
        return f"{ratio:,.0f} ×"
    return "=" if ratio == 1 else f"{100 * (ratio - 1):+.1f} %"


def _unit_bytes(text: str) -> int:
    return parse_size(f"1 {text.split()[1]}")


_AGREEMENT = 0.005
"""Maximum relative error of the difference between two rounded values."""
_DECIMALS = 4
"""Maximum number of decimals of two such values."""
_FACTOR = 10
"""From this ratio to the default on, a factor is shown instead of a percentage."""
