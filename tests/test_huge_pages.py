"""Comparisons of huge pages are repeated only if Linux changed huge pages in the background."""

from collections.abc import Callable

import pytest

from replay.verification import huge_pages
from replay.verification.harness import HarnessError
from replay.verification.huge_pages import without_surprises


@pytest.fixture
def happen(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Returns a function that increments a counter in a simulated /proc/vmstat."""
    counts = dict.fromkeys(
        ("thp_fault_alloc", "thp_fault_fallback", "thp_collapse_alloc", "thp_collapse_alloc_failed"), 7
    )
    counters = tmp_path / "vmstat"

    def happen(name: str) -> None:
        counts[name] += 1
        counters.write_text("".join(f"{name} {count}\n" for name, count in counts.items()))

    happen("thp_fault_alloc")
    monkeypatch.setattr(huge_pages, "_COUNTERS", counters)
    return happen


@pytest.mark.parametrize("surprise", ["thp_collapse_alloc", "thp_fault_fallback"])
def test_a_measurement_is_repeated_until_the_counters_do_not_change(happen, surprise):
    plays = []

    def play() -> int:
        plays.append(surprise)
        if len(plays) < 3:
            happen(surprise)
        return len(plays)

    assert without_surprises(play) == 3


def test_huge_pages_of_malloc_itself_are_no_reason_to_repeat(happen):
    plays = []

    def play() -> None:
        plays.append(happen("thp_fault_alloc"))
        happen("thp_collapse_alloc_failed")

    without_surprises(play)
    assert len(plays) == 1


def test_a_difference_counts_unless_something_happened_meanwhile(happen):
    plays = []

    def play() -> None:
        plays.append(None)
        if len(plays) == 1:
            happen("thp_collapse_alloc")
        raise AssertionError(f"difference {len(plays)}")

    with pytest.raises(AssertionError, match="difference 2"):
        without_surprises(play)


def test_a_kernel_that_never_rests_is_named_as_the_reason(happen):
    plays = []
    with pytest.raises(HarnessError, match=r"in each of 10 tries Linux collapsed .*/vmstat"):
        without_surprises(lambda: plays.append(happen("thp_collapse_alloc")))
    assert len(plays) == 10


def test_without_counters_a_measurement_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "_COUNTERS", tmp_path / "missing")
    assert without_surprises(lambda: 5) == 5
