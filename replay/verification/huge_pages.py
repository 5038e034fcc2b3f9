"""Huge pages of this machine: settings of the kernel, and its background work, which no model can predict."""

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
    """Returns the kernel's setting as a value of `linux.transparent_huge_pages`."""
    return _SWITCH.read_text().partition("[")[2].partition("]")[0] if _SWITCH.exists() else "never"


def free_huge_pages() -> int:
    """Returns the number of free reserved huge pages, as a value of `linux.reserved_huge_pages`."""
    counts = dict(re.findall(r"^HugePages_(Free|Rsvd): +(\d+)$", _MEMORY.read_text(), re.MULTILINE))
    return int(counts.get("Free", 0)) - int(counts.get("Rsvd", 0))


def without_surprises(measure: Callable[[], Result]) -> Result:
    """Returns the result of a call of `measure` during which Linux did not merge or split transparent huge pages.

    Linux can collapse pages in the background (khugepaged), have no free huge page, or split underused ones. Its
    counters are for all processes together. If one has changed, `measure` is called again.
    """
    for _ in range(_TRIES):
        before = _count_surprises()
        try:
            result = measure()
        except Exception:
            if _count_surprises() == before:
                raise
        else:
            if _count_surprises() == before:
                return result
    raise HarnessError(
        f"in each of {_TRIES} tries Linux collapsed or split pages in the background, or had no free huge page "
        f"(thp_* in {_COUNTERS}): resident memory cannot be compared on this machine now"
    )


def _count_surprises() -> list[str]:
    return _SURPRISES.findall(_COUNTERS.read_text()) if _COUNTERS.exists() else []
