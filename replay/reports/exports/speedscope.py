"""Live and pinned bytes by call site as profiles of speedscope (https://www.speedscope.app/file-format-schema.json).

A call site is a frame, and its bytes are the weight of one sample. Traces have no deeper stacks.

    live     allocated bytes of the site's live blocks, with rounding and headers
    pinned   resident bytes that are released if the site's blocks are gone, and no others; what only several sites
             together release is a frame of its own
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from replay.analysis.block_groups import UNKNOWN, site_name
from replay.analysis.pin_report import PinReport
from replay.trace import Site

TOGETHER = "several call sites together"
_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def profiles(report: PinReport, blocks: np.ndarray, sites: Sequence[Site], title: str, exporter: str) -> dict[str, Any]:
    """Returns the JSON object: `report` and `blocks`, rows of LIVE_BLOCK, are of the same moment."""
    known = {site_name(site): site for site in sites}
    live = np.bincount(
        np.minimum(blocks["site"], len(sites)).astype(np.int64), blocks["bytes"], minlength=len(sites) + 1
    )
    names = [*map(site_name, sites), UNKNOWN]
    pinned = [(group.name, group.pinned_bytes) for group in report.by_site.groups]
    pinned.append((TOGETHER, report.releasable_bytes - sum(weight for _, weight in pinned)))
    by_name: dict[str, int] = {}
    for name, weight in zip(names, live.astype(np.int64).tolist(), strict=True):
        by_name[name] = by_name.get(name, 0) + weight
    frames = {name: number for number, name in enumerate(dict.fromkeys([*by_name, *(name for name, _ in pinned)]))}
    return {
        "$schema": _SCHEMA,
        "shared": {"frames": [_frame(name, known) for name in frames]},
        "profiles": [
            _profile("live bytes by call site", by_name.items(), frames),
            _profile("pinned bytes by call site", pinned, frames),
        ],
        "activeProfileIndex": 0,
        "name": title,
        "exporter": exporter,
    }


def _frame(name: str, known: dict[str, Site]) -> dict[str, Any]:
    if name not in known:
        return {"name": name}
    site = known[name]
    return {"name": site.function, "file": site.file, "line": site.line}


def _profile(name: str, weights: Iterable[tuple[str, int]], frames: dict[str, int]) -> dict[str, Any]:
    """Returns a profile with a sample for each name whose weight is above 0, the heaviest first."""
    heaviest = sorted(((weight, frames[name]) for name, weight in weights if weight > 0), key=lambda each: -each[0])
    return {
        "type": "sampled",
        "name": name,
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(weight for weight, _ in heaviest),
        "samples": [[frame] for _, frame in heaviest],
        "weights": [weight for weight, _ in heaviest],
    }
