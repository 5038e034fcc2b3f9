"""The estimate of a run under other settings of the garbage collector, with its bounds."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from replay.support.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.trace.editing.collecting import CollectedTrace

_RARER = "objects became garbage at an age that fits their type, after the last recorded collection that kept them"
_MORE_FREQUENT = (
    "collections are more frequent than recorded, so most moments at which objects became garbage are unknown"
)
_DISABLED = "what recorded collections freed stays live until the program calls gc.collect"
_SAME = "the program and its finalizers do the same otherwise"


@dataclass(frozen=True)
class CollectorWhatIf:
    """Peaks of resident memory under other settings; the field names are the keys of `replay run --json`."""

    label: str
    """That the figures of the run are an estimate."""
    assumption: str
    thresholds: tuple[int, int, int]
    enabled: bool
    freeze_at: str | None
    more_frequent: bool
    """Whether collections can be more frequent than recorded."""
    resident_bytes_peak: int
    resident_bytes_peak_low: int
    """If objects became garbage at the earliest moment that the recording allows."""
    resident_bytes_peak_high: int
    """If they became garbage at the latest moment."""
    collections: int
    """Collections under these settings."""
    collections_recorded: int
    collections_explicit: int
    """Recorded ones by `gc.collect`, which stay."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        low, high = format_size(self.resident_bytes_peak_low), format_size(self.resident_bytes_peak_high)
        between = f"between {low} and {high}" if low != high else "with equal bounds"
        counts = f"{self.collections:,} collections instead of {self.collections_recorded:,}"
        return f"peak resident {format_size(self.resident_bytes_peak)}, {between}; {counts}. Assumed: {self.assumption}"


def estimate(
    trace: "CollectedTrace", resident_bytes_peak: int, simulate: "Callable[[CollectedTrace], int]"
) -> CollectorWhatIf:
    """Returns the estimate of a simulated trace with this peak. `simulate` returns the peak of the same trace with
    other moments."""
    from replay.trace.editing.collecting import Moments

    bounds = [simulate(trace.assuming(moments)) for moments in (Moments.EARLIEST, Moments.LATEST)]
    peaks = [resident_bytes_peak, *bounds]
    settings, collector = trace.settings, trace.settings.over(trace.collector)
    more_frequent = settings.is_more_frequent(trace.collector)
    assumed = _MORE_FREQUENT if more_frequent else _RARER if collector.is_automatic else _DISABLED
    return CollectorWhatIf(
        label="estimate",
        assumption=f"{assumed}; {_SAME}",
        thresholds=collector.thresholds,
        enabled=collector.enabled,
        freeze_at=settings.freeze_at,
        more_frequent=more_frequent,
        resident_bytes_peak=resident_bytes_peak,
        resident_bytes_peak_low=min(peaks),
        resident_bytes_peak_high=max(peaks),
        collections=trace.ran,
        collections_recorded=trace.recorded,
        collections_explicit=trace.explicit,
    )
