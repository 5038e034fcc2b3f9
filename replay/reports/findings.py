"""The findings of a run in sentences: how much memory, why, pinned by what, and what to try. Pure functions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from replay.allocators import constants_of
from replay.analysis.metrics import Summary
from replay.analysis.pin_report import PinReport
from replay.analysis.pins import Cover, is_no_call_site
from replay.analysis.remedies import Remedy, is_worthwhile, saving
from replay.reports.claims import claims, sentences
from replay.reports.figures import format_change
from replay.reports.pins import short_name
from replay.reports.tables import percent
from replay.simulation.result import RunResult
from replay.support.names import printable
from replay.support.units import format_count, format_size, format_time
from replay.trace import TEARDOWN_MARK

_MUCH = 0.05
"""Retained or pinned memory is worth a sentence from this share of the resident memory at end on."""
_NEARLY = 0.75
_PARTS = {
    "rounding_bytes": "in rounding and headers of blocks",
    "free_in_pools_bytes": "in free blocks of pools",
    "free_pools_bytes": "in free pools of arenas",
    "free_in_libc_bytes": "in {}",
}


class Finding(NamedTuple):
    """A sentence or two, and the question that they answer."""

    question: str
    answer: str


def findings(result: RunResult, summary: Summary, pins: PinReport | None, remedies: list[Remedy]) -> Iterator[Finding]:
    """Yields what a reader wants to know first."""
    yield Finding("How much memory?", _levels(result, summary))
    for sentence in sentences(claims(result.metadata, result.config, summary)):
        label, _, text = sentence.partition(": ")
        if label == "Measured":
            yield Finding("Is it so?", f"Measured in the process: {text}")
    yield Finding("Why?", _reasons(summary))
    if pins is not None:
        advice = sites_advice(result, pins)
        yield Finding("What pins it?", " ".join(filter(None, (_pinned(pins), advice))))
    if remedies:
        yield Finding("What to try?", _advice(summary, remedies))


def _levels(result: RunResult, summary: Summary) -> str:
    began = [name for name, time_ns, _ in result.phases if time_ns <= summary.peak_time_ns and name != TEARDOWN_MARK]
    during = f" in the phase {printable(began[-1])}" if began else ""
    peak, mean, end = (
        format_size(size)
        for size in (summary.resident_bytes_at_peak, summary.resident_bytes_mean, summary.resident_bytes_end)
    )
    if not summary.resident_bytes_peak:
        return "The trace takes no memory."
    when = format_time(summary.peak_time_ns)
    return (
        f"Resident memory peaks at {peak} after {when}{during}. Its mean over time is {mean}; at the end, it is {end}."
    )


def _reasons(summary: Summary) -> str:
    resident, live, retained = (
        summary.resident_bytes_end, summary.requested_bytes_end, summary.retained_bytes_end,
    )  # fmt: skip
    if not resident:
        return "Nothing is resident at the end."
    if retained < _MUCH * resident:
        return f"Nearly all memory at the end is live: {format_size(live)} of {format_size(resident)}."
    parts = {name: getattr(summary, f"{name}_end") for name in _PARTS}
    notable = sorted((name for name in parts if parts[name] >= _MUCH * retained), key=lambda name: -parts[name])
    free = constants_of(summary.libc_model).FREE_MEMORY
    named = [f"{format_size(parts[name])} {_PARTS[name].format(free)}" for name in notable]
    share, out = percent(live / resident), summary.not_resident_bytes_end
    text = f"At the end, {format_size(live)} of {format_size(resident)} are live ({share}). "
    text += f"The allocators retain the other {format_size(retained)}"
    if named and out < _MUCH * retained:
        return f"{text}: {', '.join(named)}."
    return f"{text}. Mapped, but not live: {', '.join(named)}; of these, {format_size(out)} are not in memory."


def _pinned(pins: PinReport) -> str:
    if pins.releasable_bytes < _MUCH * max(1, pins.resident_bytes):
        return "No live blocks keep a notable amount of memory from being released."
    by = pins.by_site if pins.has_sites else pins.by_type if pins.has_types else pins.by_size_class
    text = f"Live blocks keep {format_size(pins.releasable_bytes)} from being released at the end. "
    if best := _smallest_good(by.cover):
        groups = ", ".join(short_name(name) for name in sorted(best.groups, key=is_no_call_site))
        verb = "has" if len(best.groups) == 1 else "have"
        what = "" if pins.has_sites else "type " if pins.has_types else "size class "
        text += f"{format_size(best.released_bytes)} can be released if {what}{groups} {verb} no live blocks. "
    return text.strip()


def _smallest_good(covers: Sequence[Cover]) -> Cover | None:
    """Returns the smallest set that releases nearly as much as the largest one."""
    return next((each for each in covers if each.released_bytes >= _NEARLY * covers[-1].released_bytes), None)


def sites_advice(result: RunResult, pins: PinReport) -> str:
    """Returns how to get call sites; empty if the trace has them, or is not a recording."""
    is_recorded = bool(result.metadata.origin.cpython_version)
    return "Record with `replay record --sites` to see call sites." if is_recorded and not pins.has_sites else ""


def _advice(summary: Summary, remedies: list[Remedy]) -> str:
    best = max(remedies, key=lambda remedy: saving(summary, remedy))
    tried = format_count(len(remedies), "setting")
    if not is_worthwhile(summary, best):
        return f"None of the {tried} that were simulated saves much of the mean or the end."
    mean = _instead(best.resident_bytes_mean, summary.resident_bytes_mean)
    end = _instead(best.resident_bytes_end, summary.resident_bytes_end)
    return f"{best.name}: the mean is {mean}, the end {end}. This is the best of {tried} that were simulated."


def _instead(after: int, before: int) -> str:
    """Returns a size, and the one that it replaces."""
    change = format_change("resident_bytes_mean", after / before if before else None, after, before)
    return f"{format_size(after)} instead of {format_size(before)} ({change})"
