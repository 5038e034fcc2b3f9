"""A run without the blocks of some call sites: the proof of what pins predict."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from replay.analysis.block_groups import site_name
from replay.analysis.pins import Grouping
from replay.analysis.retention import Retained
from replay.config import StackConfig
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.simulation.snapshots import PEAK
from replay.support.errors import ReplayError
from replay.trace import Trace
from replay.trace.editing import span_ns
from replay.trace.editing.selecting import Conditions, FilteredTrace

OPTION = "--without "
_LINE = re.compile(r":\d+$")


@dataclass(frozen=True)
class Removal:
    """What a run without the blocks of some call sites has, at the same moment."""

    sites: list[str]
    released_bytes: int
    """As predicted from the pins: what is released if these blocks are gone at this moment."""
    resident_bytes: int
    """Of the run in which these blocks were never allocated."""
    simulated_bytes: int
    """By how much its resident memory is smaller."""


def matches_site(pattern: str, name: str) -> bool:
    """Whether a pattern of `--without` stands for the call site with this name: it is a part of it, and a line number
    at its end is whole."""
    return pattern in name if not _LINE.search(pattern) else f"{pattern})" in name


def shortest_pattern(name: str, names: Sequence[str]) -> str:
    """Returns the shortest end of a call site's path, with its line, that stands for no other one of these names."""
    place = name.rpartition("(")[2].removesuffix(")").split("/")
    ends = ("/".join(place[-count:]) for count in range(1, len(place) + 1))
    others = {*names} - {name}
    return next((end for end in ends if not any(matches_site(end, other) for other in others)), name)


def sites_matching(trace: Trace, patterns: Sequence[str], option: str = "") -> frozenset[int]:
    """Returns the numbers of the call sites that match a pattern. Raises ReplayError if one matches none."""
    names = [site_name(site) for site in trace.metadata.sites]
    found: set[int] = set()
    for pattern in patterns:
        chosen = {index for index, name in enumerate(names) if matches_site(pattern, name)}
        if not chosen:
            what = (
                "no call site has this in its name" if names else "the trace has no call sites; record it with --sites"
            )
            raise ReplayError(f"{option}{pattern!r}: {what}")
        found |= chosen
    return frozenset(found)


def simulate_removal(
    trace: Trace, config: StackConfig, at: str | int, patterns: Sequence[str], retained: Retained, grouping: Grouping
) -> Removal:
    """Simulates the trace without the blocks of the call sites that match a pattern."""
    chosen = sites_matching(trace, patterns, OPTION)
    names = [*dict.fromkeys(site_name(trace.metadata.sites[index]) for index in sorted(chosen))]
    command = " ".join(f"--without {pattern}" for pattern in patterns)
    rest = FilteredTrace(trace, Conditions(without_sites=chosen), f"pins {command}")
    moment = at
    if at == PEAK or not isinstance(at, str):  # the trace may begin later without these blocks, and end before
        moment = min(max(0, retained.at_ns + _begin_ns(trace) - _begin_ns(rest)), span_ns(rest))
    found: list[int] = []
    run(
        rest, config, sample_every_ns=NO_SAMPLES_NS, snapshots=[moment],
        sink=lambda snapshot: found.append(int(snapshot.counters["resident_bytes"])),
    )  # fmt: skip
    return Removal(names, grouping.released_bytes_of(names), found[-1], retained.resident_bytes - found[-1])


def _begin_ns(trace: Trace) -> int:
    """Returns the time of the first event; 0 for an empty trace."""
    return next((int(events.time_ns[0]) for events in trace.batches() if events.rows), 0)
