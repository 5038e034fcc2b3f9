"""What a run report claims: which figures are exact, which are estimates, and what the trace does not contain."""

from replay.metrics import Summary
from replay.trace import DROPPED_MAPPING_BYTES, LEFT_OUT, OLDER_FREES
from replay.units import format_size

EXACT, ESTIMATE, MISSING = "exact", "estimate", "not included"


def claims(summary: Summary) -> list[tuple[str, str]]:
    """Claims as pairs of a label and a sentence."""
    models = [model for model in (summary.pymalloc_model, summary.libc_model) if model in ("glibc", "pymalloc")]
    exact = f"; blocks and system calls of {' and '.join(models)}" if models else ""
    told = [(EXACT, f"requested bytes{exact}"), (ESTIMATE, "simulated time, from the configuration's costs")]
    counted = (OLDER_FREES, LEFT_OUT, DROPPED_MAPPING_BYTES)
    older, others, mapped_bytes = (_count(summary.trace.get(name)) for name in counted)
    if older:
        told.append((MISSING, f"{older:,} frees of blocks older than the recording"))
    if others:
        told.append((MISSING, f"{others:,} calls of other threads, and all later calls on their blocks"))
    if mapped_bytes:
        told.append((MISSING, f"{format_size(mapped_bytes)} that the recorded process mapped with mmap"))
    return told


def _count(text: str | None) -> int:
    """The number of that text; 0 if it is none. A trace's origin may hold anything."""
    return int(text) if text and text.isdecimal() else 0
