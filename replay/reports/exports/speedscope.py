"""Live and pinned bytes by call site as profiles of speedscope (https://www.speedscope.app/file-format-schema.json).

A call site is a frame in the frame of its file, and its bytes are the weight of one sample. Traces have no stacks.

    live     allocated bytes of the site's live blocks, with rounding and headers
    pinned   resident bytes that are released if the site's blocks are gone, and no others; what only several sites
             together release is a separate frame
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from replay.analysis.block_groups import by_site, site_name
from replay.analysis.pin_report import PinReport
from replay.trace import Site

TOGETHER = "several call sites together"
_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def profiles(report: PinReport, blocks: np.ndarray, sites: Sequence[Site], title: str, exporter: str) -> dict[str, Any]:
    """Returns the JSON object: `report` and `blocks`, rows of LIVE_BLOCK, are of the same moment."""
    known = {site_name(site): site for site in sites}
    grouped = by_site(blocks["site"], sites)
    sizes = np.bincount(grouped.of_blocks(), blocks["bytes"], len(grouped.names)).astype(np.int64).tolist()
    live = list(zip(grouped.names, sizes, strict=True))
    pinned = [(group.name, group.pinned_bytes) for group in report.by_site.groups]
    pinned.append((TOGETHER, report.releasable_bytes - sum(weight for _, weight in pinned)))
    frames = _Frames()
    profiles = [
        _profile(name, [(frames.stack(each, known.get(each)), weight) for each, weight in weights if weight > 0])
        for name, weights in (("live bytes by call site", live), ("pinned bytes by call site", pinned))
    ]
    return {
        "$schema": _SCHEMA,
        "shared": {"frames": frames.found},
        "profiles": profiles,
        "activeProfileIndex": 0,
        "name": title,
        "exporter": exporter,
    }


class _Frames:
    """The frames of all profiles, each of them once."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def stack(self, name: str, site: Site | None) -> list[int]:
        """Returns the numbers of the frames of a call site; of `name` alone, if it is not one."""
        if site is None:
            return [self._number(name=name)]
        return [
            self._number(name=site.file, file=site.file),
            self._number(name=site.function, file=site.file, line=site.line),
        ]

    def _number(self, **frame: Any) -> int:
        key = tuple(frame.values())
        if key not in self._numbers:
            self._numbers[key] = len(self.found)
            self.found.append(frame)
        return self._numbers[key]


def _profile(name: str, weights: Iterable[tuple[list[int], int]]) -> dict[str, Any]:
    """Returns a profile with a sample for each stack, the heaviest first."""
    heaviest = sorted(weights, key=lambda each: -each[1])
    return {
        "type": "sampled",
        "name": name,
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(weight for _, weight in heaviest),
        "samples": [stack for stack, _ in heaviest],
        "weights": [weight for _, weight in heaviest],
    }
