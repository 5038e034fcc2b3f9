"""Huge pages of this machine's kernel: its settings, and the moments when no model can know what it does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from replay.verification.harness import HarnessError

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MEMORY = Path("/proc/meminfo")
_COUNTERS = Path("/proc/vmstat")
_SURPRISES = re.compile(r"^(?:thp_collapse_alloc|thp_fault_fallback|thp_underused_split_page) +(\d+)$", re.MULTILINE)
_TRIES = 10

Result = TypeVar("Result")


def transparent_huge_pages() -> str:
    """The setting of this machine's kernel, as `linux.transparent_huge_pages` takes it."""
    return _SWITCH.read_text().partition("[")[2].partition("]")[0] if _SWITCH.exists() else "never"


def free_huge_pages() -> int:
    """Reserved huge pages of this machine that no mapping has, as `linux.reserved_huge_pages` takes them."""
    counts = dict(re.findall(r"^HugePages_(Free|Rsvd): +(\d+)$", _MEMORY.read_text(), re.MULTILINE))
    return int(counts.get("Free", 0)) - int(counts.get("Rsvd", 0))


def without_surprises(play: Callable[[], Result]) -> Result:
    """What `play` returns or raises when Linux does not merge or split transparent huge pages meanwhile.

    It may collapse pages in the background (khugepaged), have no huge page to give, or split those hardly used.
    It counts that for all processes together; whenever a count has moved, `play` is called again.
    """
    for _ in range(_TRIES):
        before = _count_surprises()
        try:
            result = play()
        except Exception:
            if _count_surprises() == before:
                raise
        else:
            if _count_surprises() == before:
                return result
    raise HarnessError(
        f"in each of {_TRIES} tries Linux collapsed or split pages in the background, or had no huge page to give "
        f"(thp_* in {_COUNTERS}): what is resident cannot be compared on this machine now"
    )


def _count_surprises() -> list[str]:
    return _SURPRISES.findall(_COUNTERS.read_text()) if _COUNTERS.exists() else []
