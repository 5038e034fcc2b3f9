"""A test's verdict: its figures, compared with its limits and a baseline."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay.analysis.metrics import metric_names
from replay.gates.baselines import Baseline, Figure, Measured, without_details
from replay.gates.checking import lacking, unlike
from replay.gates.judging import judge
from replay.gates.tolerances import TEST_DEFAULTS, Rule
from replay.pytest_plugin.arguments import Wish
from replay.pytest_plugin.explanations import Compared, causes, sentence
from replay.pytest_plugin.measuring import look
from replay.sources import open_source
from replay.support.errors import ReplayError
from replay.sweeps.configurations import stack_key

SHOWN = ("resident_bytes_peak", "blowup", "arenas_peak", "arenas_live")
"""Metrics that JUnit's properties and the table at the end tell of every recorded test."""
UPDATE = "--replay-update"


@dataclass(frozen=True)
class Judge:
    """Knows what was before: figures, and recordings that tell causes. Without a baseline only limits count."""

    baseline: Baseline | None
    traces: Path | None

    def verdict(self, test: str, path: Path, wish: Wish) -> dict[str, Any]:
        """What the tests' process needs to tell."""
        trace = open_source(path)
        stack = wish.stack(trace.metadata)
        looked = look(trace, stack)
        now = {metric: Figure(value=value, low=value, high=value) for metric, value in looked.figures.items()}
        measured = Measured(
            case=wish.case_of(test), trace=None, stack=stack_key(stack),
            figures={metric: now[metric] for metric in metric_names()},
        )  # fmt: skip
        rules: list[Rule] = [*(wish.tolerances or TEST_DEFAULTS), *wish.limits]
        ruled = [rule.metric for rule in rules]
        before = self._before(test, measured, rules)
        findings = judge(now, before.figures if before else None, rules)
        failed = [finding for finding in findings if finding.failed]
        compared = Compared(trace, looked, before, self._kept(test), stack)
        shown = dict.fromkeys([*SHOWN, *(finding.metric for finding in findings)])
        return {
            "state": "failed" if failed else "new" if self.baseline and not before else "passed",
            "allocator": stack.name,
            "findings": [sentence(finding) for finding in failed],
            "causes": causes(failed, compared) if failed else [],
            "figures": {metric: looked.figures[metric] for metric in shown},
            "requested": looked.summary.requested_bytes_peak,
            "measured": without_details(measured, ruled).model_dump(mode="json", by_alias=True),
        }

    def _before(self, test: str, now: Measured, rules: list[Rule]) -> Measured | None:
        before = self.baseline.cases.get(test) if self.baseline else None
        if before and (said := unlike(now, before, UPDATE) or lacking(before, rules, UPDATE)):
            raise ReplayError(said)
        return before

    def _kept(self, test: str) -> Path | None:
        path = self.traces / trace_name(test) if self.traces else None
        return path if path and path.exists() else None


def trace_name(test: str) -> str:
    """The file in which the recording of a test is kept: readable, and different for each."""
    readable = re.sub(r"[^\w.-]+", ".", test).strip(".")[-120:]
    return f"{readable}-{hashlib.sha256(test.encode()).hexdigest()[:6]}.parquet"
