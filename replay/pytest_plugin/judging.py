"""A test's verdict: its figures, compared with its limits and a baseline."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay.config import StackConfig
from replay.gates.baselines import Baseline, Figure, Measured, without_details
from replay.gates.checking import missing_metric, why_incomparable
from replay.gates.judging import judge
from replay.gates.tolerances import TEST_DEFAULTS, Rule
from replay.pytest_plugin.arguments import LEAKS, Settings
from replay.pytest_plugin.explanations import Compared, causes, sentence
from replay.pytest_plugin.measuring import measure_pins, measure_recording
from replay.sources import open_source
from replay.support.errors import ReplayError
from replay.support.units import format_size
from replay.sweeps.configurations import stack_key
from replay.trace import Trace

SHOWN = ("resident_bytes_peak", "blowup", "arenas_peak", "arenas_live")
"""Metrics in JUnit's properties and in the table at the end, for every recorded test."""
UPDATE = "--replay-update"
_SITES = 3
"""Maximum number of call sites in a sentence."""


@dataclass(frozen=True)
class Judge:
    """Judges recordings of tests by a baseline, and explains failures by earlier recordings in the folder `traces`.

    Without a baseline, only limits are checked.
    """

    baseline: Baseline | None
    traces: Path | None

    def verdict(self, test: str, path: Path, settings: Settings) -> dict[str, Any]:
        """Returns the verdict that the process under test reports, as JSON values."""
        trace = open_source(path)
        stack = settings.stack(trace.metadata)
        results = measure_recording(trace, stack)
        now = {metric: Figure(value=value, low=value, high=value) for metric, value in results.figures.items()}
        measured = Measured(
            case=settings.case_of(test), trace=None, stack=stack_key(stack),
            figures={metric: figure for metric, figure in now.items() if metric not in LEAKS},
        )  # fmt: skip
        rules: list[Rule] = [*(settings.tolerances or TEST_DEFAULTS), *settings.limits]
        ruled = [rule.metric for rule in rules]
        before = self._before(test, measured, rules)
        findings = judge(now, before.figures if before else None, rules)
        failed = [finding for finding in findings if finding.failed]
        pins = _too_many_pins(trace, stack, settings)
        compared = Compared(trace, results, before, self._recording_before(test), stack)
        return {
            "state": "failed" if failed or pins else "new" if self.baseline and not before else "passed",
            "allocator": stack.name,
            "findings": [*(sentence(finding) for finding in failed), *pins],
            "causes": causes(failed, compared) if failed else [],
            "figures": {metric: results.figures[metric] for metric in SHOWN}
            | {finding.metric: results.figures.get(finding.metric, 0) for finding in findings},
            "requested": results.summary.requested_bytes_peak,
            "measured": without_details(measured, ruled).model_dump(mode="json", by_alias=True),
        }

    def _before(self, test: str, now: Measured, rules: list[Rule]) -> Measured | None:
        before = self.baseline.cases.get(test) if self.baseline else None
        if before and (reason := why_incomparable(now, before, UPDATE) or missing_metric(before, rules, UPDATE)):
            raise ReplayError(reason)
        return before

    def _recording_before(self, test: str) -> Path | None:
        path = self.traces / trace_name(test) if self.traces else None
        return path if path and path.exists() else None


def _too_many_pins(trace: Trace, stack: StackConfig, settings: Settings) -> list[str]:
    """Returns a sentence for each group of call sites that pins more than it may."""
    found = measure_pins(trace, stack, [*settings.pinned])
    return [
        f"{', '.join(names[:_SITES])}{' and others' * (len(names) > _SITES)} {'pin' if names[1:] else 'pins'}"
        f" {format_size(pinned)}, and at most {format_size(limit)} is allowed"
        for (pinned, names), limit in zip(found.values(), settings.pinned.values(), strict=True)
        if pinned > limit
    ]


def trace_name(test: str) -> str:
    """Returns the name of the file for the recording of a test: readable and unique."""
    readable = re.sub(r"[^\w.-]+", ".", test).strip(".")[-120:]
    return f"{readable}-{hashlib.sha256(test.encode()).hexdigest()[:6]}.parquet"
