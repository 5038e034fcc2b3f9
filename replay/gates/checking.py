"""Measures the cases of a suite and judges them by a baseline and rules."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from replay.gates.baselines import Baseline, Measured, without_details
from replay.gates.cases import Case, Suite
from replay.gates.causes import Cause, explain
from replay.gates.judging import Finding, judge
from replay.gates.measuring import BEFORE, Measurement, Progress, locate, measure
from replay.gates.tolerances import DEFAULTS, RECORDED_DEFAULTS, Limit, Rule, Tolerance, parse_rules, with_defaults
from replay.sources import open_source
from replay.support.atomic_files import new_file
from replay.support.errors import ReplayError
from replay.sweeps.traces import find_inputs

State = Literal["passed", "failed", "new", "gone"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class CaseReport:
    """The verdict of one case. `new`: the case is not in the baseline; `gone`: it is only in the baseline."""

    name: str
    state: State
    origin: str = ""
    allocator: str = ""
    findings: tuple[Finding, ...] = ()
    cause: Cause | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.state != "passed"

    @property
    def better(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == "better")

    @property
    def worse(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.failed)


@dataclass(frozen=True)
class Report:
    """The verdicts and figures of a check."""

    cases: tuple[CaseReport, ...]
    measured: Mapping[str, Measured] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Notes about the stacks."""

    @property
    def failed(self) -> bool:
        return any(case.failed for case in self.cases)

    def count(self, state: State) -> int:
        return sum(case.state == state for case in self.cases)


def _ignore_progress(done: int, expected: int) -> None:
    """Ignores the progress."""


def check(
    suite: Suite,
    baseline: Baseline | None,
    folder: Path,
    *,
    rules: list[Rule] | None = None,
    causes: bool = True,
    progress: Progress = _ignore_progress,
) -> Report:
    """Measures the suite's cases and judges them by the baseline and their limits. `rules` override all other rules.

    A case needs no baseline if it is compared with a trace, or if it only has limits.
    """
    for case in suite.cases.values():
        if case.against is not None:
            find_inputs([str(locate(case.against, folder))], [])
    with tempfile.TemporaryDirectory(prefix="replay-check-") as scratch:
        found = measure(_with_references(suite.cases), folder, Path(scratch), progress)
        reports = [
            _judge_case(name, case, found, baseline, _rules(suite, case, rules or []), causes, folder)
            for name, case in suite.cases.items()
        ]
    known = baseline.cases if baseline else {}
    reports += [
        CaseReport(name, "gone", before.case.origin, note="the suite no longer has this case; --update removes it")
        for name, before in known.items()
        if name not in suite.cases
    ]
    return Report(tuple(reports), _kept(suite, found), _notes(found))


def take_baseline(
    suite: Suite, folder: Path, *, progress: Progress = _ignore_progress
) -> tuple[Baseline, tuple[str, ...]]:
    """Measures the suite's cases and returns them as a baseline, with notes about the stacks."""
    with tempfile.TemporaryDirectory(prefix="replay-baseline-") as scratch:
        found = measure(suite.cases, folder, Path(scratch), progress)
        _keep_recordings(suite, found, folder)
    return Baseline(cases=_kept(suite, found)), _notes(found)


def _notes(found: Mapping[str, Measurement]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for each in found.values() for note in each.notes))


def kept_recordings(suite: Suite) -> dict[str, str]:
    """Returns the file in which a baseline saves the median recording of each case that names one."""
    cases = suite.cases.items()
    return {name: case.against for name, case in cases if case.record is not None and case.against is not None}


def _keep_recordings(suite: Suite, found: Mapping[str, Measurement], folder: Path) -> None:
    """Saves the median recording of a program as the trace that later recordings are compared with."""
    for name, file in kept_recordings(suite).items():
        with new_file(folder / file, force=True) as temporary:
            shutil.copyfile(found[name].trace, temporary)


def _kept(suite: Suite, found: Mapping[str, Measurement]) -> dict[str, Measured]:
    """Returns the figures that a baseline keeps."""
    return {
        name: without_details(found[name].measured, (rule.metric for rule in _rules(suite, case, [])))
        for name, case in suite.cases.items()
    }


def ratchet(baseline: Baseline, report: Report) -> tuple[Baseline, int]:
    """Returns the baseline with improved figures replaced, and their number."""
    count, cases = 0, {}
    for case in report.cases:
        if case.state == "passed" and case.name in baseline.cases and case.better:
            before = baseline.cases[case.name]
            lower = {finding.metric: finding.now for finding in case.better}
            cases[case.name] = before.model_copy(update={"figures": {**before.figures, **lower}})
            count += len(lower)
    return baseline.with_cases(cases), count


def _with_references(cases: Mapping[str, Case]) -> dict[str, Case]:
    """Returns the cases and, for each one that is compared with a trace, a case for that trace with the same stack."""
    more = {}
    for name, case in cases.items():
        if case.against is not None:
            left_out = {"source": case.against, "record": None, "against": None, "seed": None}
            more[name + BEFORE] = case.model_copy(update=left_out)
    return {**cases, **more}


def _rules(suite: Suite, case: Case, rules: list[Rule]) -> list[Rule]:
    layers = [parse_rules(suite.tolerances), parse_rules(case.tolerances), rules]
    return with_defaults(*layers, defaults=DEFAULTS if case.record is None else RECORDED_DEFAULTS)


def _judge_case(
    name: str,
    case: Case,
    found: Mapping[str, Measurement],
    baseline: Baseline | None,
    rules: list[Rule],
    causes: bool,
    folder: Path,
) -> CaseReport:
    now = found[name]
    reference = found.get(name + BEFORE)
    before = reference.measured if reference else baseline.cases.get(name) if baseline else None
    report = CaseReport(name, "passed", case.origin, now.stack.name)
    if before is None and not all(isinstance(rule, Limit) for rule in rules):
        findings = tuple(judge(now.measured.figures, None, rules))
        return replace(report, state="new", findings=findings, note="the case is not in the baseline; --update adds it")
    if before is not None and (reason := _mismatch(case, now.measured, before, rules, reference is not None)):
        raise ReplayError(f"case {name}: {reason}")
    findings = tuple(judge(now.measured.figures, before.figures if before else None, rules))
    if not any(finding.failed for finding in findings):
        return replace(report, findings=findings)
    report = replace(report, state="failed", findings=findings)
    if all(isinstance(finding.rule, Limit) for finding in report.worse):
        return report  # a comparison with an earlier trace does not explain an exceeded limit
    if reference is None:
        of_recordings = " (`replay baseline --record --keep TRACE` saves one)" if case.record is not None else ""
        advice = f"to see the cause, add --against TRACE with a trace from before the change{of_recordings}"
        return replace(report, note=advice)
    if not causes:
        return report
    cause = explain(open_source(reference.trace), open_source(now.trace, seed=case.seed), now.stack)
    return replace(report, cause=cause)


def _mismatch(case: Case, now: Measured, before: Measured, rules: list[Rule], is_reference: bool) -> str:
    """Returns why figures cannot be compared, else ''. Reference traces were measured with the same stack."""
    if not is_reference and (reason := why_incomparable(now, before, "--update")):
        return reason
    if not is_reference and now.trace != before.trace and not case.allow_changed_trace:
        return (
            f"{case.origin} differs from the baseline's trace (digest {(now.trace or '')[:12]}, was "
            f"{(before.trace or '')[:12]}); --update accepts it, --allow-changed-trace compares it anyway"
        )
    return missing_metric(before, rules, "--update")


def why_incomparable(now: Measured, before: Measured, update: str) -> str:
    """Returns why earlier figures are not comparable, else ''. `update` is the option that replaces them."""
    if now.stack != before.stack:
        return f"the baseline has another configuration; {update} replaces it"
    if (now.trace is None) != (before.trace is None):
        return f"the baseline was measured with {'a trace' if before.trace else 'recordings'}; {update} replaces it"
    return ""


def missing_metric(before: Measured, rules: list[Rule], update: str) -> str:
    """Returns which metric of a tolerance is not in the earlier figures, else ''."""
    for rule in rules:
        if isinstance(rule, Tolerance) and rule.metric not in before.figures:
            return f"the baseline has no {rule.metric}; {update} adds it"
    return ""
