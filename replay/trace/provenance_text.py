"""How a trace was made, and what is known of data that it lacks, as text for people."""

from replay.support.names import printable
from replay.support.units import format_size
from replay.trace.provenance import Provenance


def limits(origin: Provenance) -> str:
    """Returns one line for the screen with assumptions about a trace and omissions from it; empty without any."""
    assumed = [f"{name}: {text}" for name, text in assumptions(origin).items()]
    cut = [f"unknown columns, left out: {origin.dropped_columns}"] if origin.dropped_columns else []
    cut += [f"cut short {origin.cut_short}"] if origin.cut_short else []
    parts = [f"unknown, so assumed: {', '.join(assumed)}"] if assumed else []
    return "; ".join([*parts, *omissions(origin), *cut])


def assumptions(origin: Provenance) -> dict[str, str]:
    """Returns assumptions by the data that a log does not have."""
    each = {
        "time": origin.assumed_time,
        "thread": origin.assumed_thread,
        "domain": origin.assumed_domain,
        "frees": origin.assumed_frees,
        "reallocs": origin.assumed_reallocs,
    }
    return {name: text for name, text in each.items() if text is not None}


def omissions(origin: Provenance) -> list[str]:
    """Returns the counts of events that are missing or different in the trace."""
    counted = [
        ("frees of blocks older than the log, left out", origin.dropped_frees),
        ("reallocs of blocks older than the log, converted to mallocs", origin.converted_reallocs),
        ("missing frees, inserted", origin.missing_frees),
        ("mmap and munmap calls left out", origin.dropped_mappings),
        ("memory mapped by them, left out", origin.dropped_mapping_bytes and format_size(origin.dropped_mapping_bytes)),
        ("calls that failed, left out", origin.failed_calls),
        ("unknown lines, left out", origin.dropped_lines),
    ]
    return [f"{name}: {count if isinstance(count, str) else f'{count:,}'}" for name, count in counted if count]


def how_made(origin: Provenance) -> str:
    """Returns how the trace was made, as an addition to a sentence."""
    if origin.interpreter is not None:
        return f", recorded with {printable(origin.interpreter).replace('cpython', 'CPython', 1)}"
    if origin.workload is not None:
        return f", generated with seed {origin.seed or 0}"
    return ""
