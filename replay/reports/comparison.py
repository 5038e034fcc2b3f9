"""Text and JSON of `replay compare`."""

from typing import Any

from rich.console import Console
from rich.table import Table

from replay.analysis.comparison import ATTRIBUTED, METRICS, Attribution, CaseResult, Comparison
from replay.analysis.metrics import metrics_of
from replay.reports.figures import format_metric, format_value
from replay.reports.memory_chart import bars, highest_in_columns
from replay.reports.tables import section, table_of
from replay.support.names import printable
from replay.support.units import format_size, format_time

_BESIDE_BARS = 18
"""Columns beside the timelines: indentation, letters and peaks."""
_TITLES = {
    "requested_bytes_peak": "requested, peak",
    "resident_bytes_peak": "resident, peak",
    "resident_bytes_mean": "resident, mean",
    "resident_bytes_end": "resident, end",
    "retained_bytes_at_peak": "retained at the peak",
    "retained_bytes_end": "retained, end",
    "blowup": "resident / requested",
    "arenas_peak": "arenas, peak",
    "syscalls": "system calls",
    "page_faults": "page faults",
    "simulated_ns": "simulated time",
}
_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CASES_MAX = len(_LABELS)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison as JSON; `docs/comparing.md` explains the keys."""
    first = metrics_of(comparison.cases[0].summary)
    return {
        "cases": [
            {
                "label": case.label,
                "source": case.source,
                "stack": case.stack,
                "metrics": (metrics := metrics_of(case.summary)),
                "differences": {name: metrics[name] - first[name] for name in metrics if name in first},
                "timeline": _timeline(case),
            }
            for case in comparison.cases
        ],
        "attributions": [
            {
                "label": each.label,
                "runs": each.runs,
                "effects": {
                    metric: [effect._asdict() for effect in effects] for metric, effects in each.effects.items()
                },
            }
            for each in comparison.attributions
        ],
    }


def _timeline(case: CaseResult) -> dict[str, list[int]]:
    """Returns the resident memory at the samples of a run."""
    return {
        "time_ns": case.result.sample_times_ns.tolist(),
        "resident_bytes": case.result.samples["resident_bytes"].tolist(),
    }


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints the metrics of all cases, their timelines, and where the differences come from."""
    for letter, case in zip(_LABELS, comparison.cases, strict=False):
        console.print(f"{letter}  {printable(case.label)}", soft_wrap=True)
    console.print(section("Metrics", _metrics(comparison)))
    if any(case.result.events for case in comparison.cases):
        console.print(
            section("Resident memory over time", _timelines(comparison, max(console.width - _BESIDE_BARS, 1)))
        )
    else:
        console.print("\nThe traces have no events.")
    for letter, attribution in zip(_LABELS[1:], comparison.attributions, strict=False):
        if reason := _no_effects(attribution):
            console.print(f"\n{letter} and A {reason}", soft_wrap=True)
        else:
            console.print(section(f"Where the differences of {letter} from A come from", _effects(attribution)))


def _no_effects(attribution: Attribution) -> str | None:
    """Returns why there are no effects to show; None if there are."""
    effects = attribution.effects[ATTRIBUTED[0]]
    if not effects:
        return "have the same source and the same settings"
    if any(effect.amount for effects in attribution.effects.values() for effect in effects):
        return None
    return printable(f"have equal resident memory; they differ in: {', '.join(effect.factor for effect in effects)}")


def _metrics(comparison: Comparison) -> Table:
    """Returns the metrics of each case, with the difference from the first one if there are two, and its share."""
    letters = _LABELS[: len(comparison.cases)]
    figures = [metrics_of(case.summary) for case in comparison.cases]
    is_pair = len(figures) == 2
    table = table_of("", "A", *(heading for letter in letters[1:] for heading in (letter, *["B - A"] * is_pair, "")))
    for metric in METRICS:
        first = figures[0][metric]
        cells = [format_metric(metric, first)]
        for other in figures[1:]:
            difference = other[metric] - first
            cells += [format_metric(metric, other[metric]), *[_signed(metric, difference)] * is_pair]
            cells.append(f"{difference / first:+.1%}" if first and difference else "")
        table.add_row(_TITLES[metric], *cells)
    return table


def _signed(metric: str, difference: float) -> str:
    text = format_metric(metric, difference)
    return f"+{text}" if difference > 0 else "=" if difference == 0 else text


def _timelines(comparison: Comparison, columns: int) -> Table:
    """Returns a line of bars for each case, all on the same scales: the highest resident memory in each column."""
    highest = max(int(case.summary.resident_bytes_peak) for case in comparison.cases)
    longest = max(case.summary.duration_ns for case in comparison.cases)
    table = table_of("", "", "peak", left=2)
    for letter, case in zip(_LABELS, comparison.cases, strict=False):
        times, values = case.result.sample_times_ns, case.result.samples["resident_bytes"]
        line = bars(highest_in_columns(times, values, longest, columns), highest)
        table.add_row(letter, line, format_size(case.summary.resident_bytes_peak))
    table.add_row("", f"{'0':<{columns // 2}}{format_time(longest):>{columns - columns // 2}}", "")
    return table


def _effects(attribution: Attribution) -> Table:
    """Returns the effects of each factor on the attributed metrics, and their sums."""
    table = table_of("", *(_TITLES[metric] for metric in ATTRIBUTED))
    table.columns[0].no_wrap, table.columns[0].overflow, table.columns[0].min_width = False, "fold", 20
    by_metric = {metric: {effect.factor: effect for effect in attribution.effects[metric]} for metric in ATTRIBUTED}
    for effect in attribution.effects[ATTRIBUTED[0]]:
        change = f": {format_value(effect.before)} → {format_value(effect.after)}" if effect.after else ""
        amounts = [_signed(metric, by_metric[metric][effect.factor].amount) for metric in ATTRIBUTED]
        table.add_row(printable(f"{effect.factor}{change}"), *amounts)
    sums = [_signed(metric, sum(each.amount for each in attribution.effects[metric])) for metric in ATTRIBUTED]
    table.add_row("all of it", *sums, style="bold")
    return table
