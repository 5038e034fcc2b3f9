"""Claims about a run: the figures that are exact, those that are not, and the reasons. Pure functions.

A figure is exact if the recorded process must have had the same value. That follows from the origin of the trace and
the simulated stack together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from replay.allocators import constants_of
from replay.analysis.metrics import Summary
from replay.config import StackConfig, differences
from replay.support.names import printable
from replay.support.units import format_size
from replay.trace import CLEAN_START, Metadata, Runtime
from replay.trace.provenance_text import assumptions, omissions

_COLLECTOR = "--set gc."
"""In the edits of a trace that is simulated with other settings of the garbage collector."""
_ADVICE = "capture it with `memray run --trace-python-allocators`, then `replay import`"
_NEGLIGIBLE_BYTES, _NEGLIGIBLE_SHARE = 1 << 20, 0.05
"""The part of the measured growth that the simulation does not have is reported if it exceeds both."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Reason(_Frozen):
    """Why figures are not exact."""

    kind: Literal[
        "interpreter", "allocator", "libc", "settings", "native memory", "older blocks", "threads left out",
        "separate heaps", "edited", "log", "costs",
    ]  # fmt: skip
    text: str


class Measured(_Frozen):
    """Growth of the process's resident memory since the start of the recording, as measured by Linux."""

    start_bytes: int
    growth_peak_bytes: int
    growth_end_bytes: int
    unexplained_peak_bytes: int | None
    """The part of the growth at peak that the simulation does not have; None if the stack is not the recorded one."""


class Claim(_Frozen):
    figures: str
    """`requested`, `resident`, `time`, `libc` for the model of the C library, or the name of the model on top of it."""
    what: str = Field(exclude=True)
    """The figures in words."""
    status: Literal["exact", "not exact"]
    reasons: tuple[Reason, ...] = ()
    measured: Measured | None = None


def claims(metadata: Metadata, config: StackConfig, summary: Summary) -> tuple[Claim, ...]:
    """Returns the claims about a trace with these metadata that was simulated with the stack of `config`.

    Figures of a model that is not verified against a real allocator have no claim.
    """
    differing = list(_differences(metadata, config))
    requests = [*(each for each in differing if each.kind == "interpreter"), *_incomplete(metadata)]
    placement = [*requests, *(each for each in differing if each.kind == "allocator"), *_disturbed(metadata)]
    separate = bool(config.small_model and metadata.runtime and metadata.runtime.separate_heaps)
    heaps = [_reason("separate heaps", "subinterpreters had a pymalloc of their own, and are simulated as one")]
    native = list(_native(metadata))
    libc = [*placement, *(each for each in differing if each.kind == "libc"), *native]
    found = [_claim("requested", "requested bytes", requests)]
    if summary.small_model and (verified := constants_of(summary.small_model).VERIFIED):
        found.append(_claim(summary.small_model, verified, [*placement, *heaps * separate]))
    if verified := constants_of(summary.libc_model).VERIFIED:
        found.append(_claim("libc", verified, [*libc, *heaps * separate]))
    if native:
        resident = _claim("resident", "resident memory of the process", [*differing, *native])
        found.append(resident.model_copy(update={"measured": _measured(metadata, summary, bool(differing))}))
    costs = _reason("costs", "it follows from the configuration's costs")
    found.append(_claim("time", "simulated time", [costs]))
    return tuple(found)


def sentences(found: Iterable[Claim]) -> list[str]:
    """Returns the claims as sentences: exact figures, other figures with each reason once, measured memory."""
    found = list(found)
    exact = [each.what for each in found if each.status == "exact"]
    others = [each for each in found if each.status != "exact" and each.figures != "time"]
    lines = []
    if exact and any(reason.kind == "native memory" for each in others for reason in each.reasons):
        exact[0] += " of Python's allocators"
    if exact:
        verified = ". `replay verify` compares them with the real ones" if len(exact) > 1 else ""
        lines.append(f"Exact: {', '.join(exact)}{verified}.")
    if others:
        reasons = dict.fromkeys(reason.text for each in others for reason in each.reasons)
        lines.append(f"Not exact: {', '.join(each.what for each in others)}: {'; '.join(reasons)}.")
    lines += [_measured_sentence(each.measured) for each in found if each.measured]
    return [*lines, "Estimate: simulated time, from the configuration's costs."]


def _measured_sentence(measured: Measured) -> str:
    growth, unexplained = measured.growth_peak_bytes, measured.unexplained_peak_bytes
    start = f"resident memory of the process grew by {format_size(growth)} to its peak, from"
    line = f"Measured: {start} {format_size(measured.start_bytes)} when the recording began"
    if unexplained is None:
        return f"{line}."
    if unexplained < max(_NEGLIGIBLE_BYTES, _NEGLIGIBLE_SHARE * growth):
        return f"{line}; the recorded allocations account for this growth."
    missing = f"the recorded allocations do not account for {format_size(unexplained)} of this growth"
    return f"{line}; {missing}. For native memory, {_ADVICE}."


def _claim(figures: str, what: str, reasons: list[Reason]) -> Claim:
    return Claim(figures=figures, what=what, status="not exact" if reasons else "exact", reasons=tuple(reasons))


def _reason(kind: str, text: str) -> Reason:
    return Reason.model_validate({"kind": kind, "text": text})


def _differences(metadata: Metadata, config: StackConfig) -> Iterator[Reason]:
    for each in differences(metadata, config):
        yield _reason(each.part, str(each))


def _incomplete(metadata: Metadata) -> Iterator[Reason]:
    """Reasons why requests of the program are missing or assumed."""
    origin = metadata.origin
    if others := origin.left_out_calls:
        yield _reason("threads left out", f"{others:,} calls of other threads were not recorded")
    for text in omissions(replace(origin, dropped_mappings=None, dropped_mapping_bytes=None)):  # they move no block
        yield _reason("log", text)
    if origin.cut_short is not None:
        yield _reason("log", f"the log is cut short {printable(origin.cut_short)}")
    if _COLLECTOR in (origin.edited or ""):
        yield _reason("edited", "what the garbage collector would free under these settings is an estimate")


def _disturbed(metadata: Metadata) -> Iterator[Reason]:
    """Reasons why the real process may have placed blocks at other addresses."""
    origin = metadata.origin
    if older := origin.older_frees:
        yield _reason("older blocks", f"{older:,} blocks older than the recording were freed while it ran")
    elif origin.start not in (None, CLEAN_START):
        yield _reason("older blocks", "pools had free blocks when the recording began (`record --clean` fills them)")
    for assumed, text in assumptions(replace(origin, assumed_time=None)).items():  # times do not move blocks
        yield _reason("log", f"assumed {assumed}: {printable(text)}")
    if origin.edited is not None and origin.workload is None:
        yield _reason("edited", "the trace was edited, so no process made exactly these calls")


def _native(metadata: Metadata) -> Iterator[Reason]:
    if metadata.origin.start is not None or metadata.runtime is not None:
        yield _reason("native memory", "native memory is not recorded")
    if mapped_bytes := metadata.origin.dropped_mapping_bytes:
        text = f"{format_size(mapped_bytes)} that the process mapped with mmap are not included"
        yield _reason("native memory", text)


def _measured(metadata: Metadata, summary: Summary, is_unlike: bool) -> Measured | None:
    resident = (metadata.runtime or Runtime()).resident
    if resident is None:
        return None
    growth_bytes = max(0, resident.peak_bytes - resident.start_bytes)
    return Measured(
        start_bytes=resident.start_bytes,
        growth_peak_bytes=growth_bytes,
        growth_end_bytes=max(0, resident.end_bytes - resident.start_bytes),
        unexplained_peak_bytes=None if is_unlike else max(0, growth_bytes - summary.resident_bytes_peak),
    )
