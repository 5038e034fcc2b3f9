"""`replay check`: cases measured now and judged by a baseline; the exit code says whether they pass."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replay.commands import gate_options as options
from replay.commands.compilation import told_compilation
from replay.commands.notes import tell_notes
from replay.commands.options import AsJson, Env, Fixed, Seed
from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from replay.gates.checking import Report

SCREEN = "-"


def check(
    sources: options.Sources = None,
    allocators: options.Allocators = None,
    fixed: Fixed = None,
    env: Env = None,
    seed: Seed = None,
    suite: options.SuiteFile = None,
    baseline: options.BaselineFile = None,
    tolerances: Annotated[
        list[str] | None,
        typer.Option(
            "-t", "--tolerance", metavar="RULE", help="Rule such as resident_bytes_peak:2% or blowup<=1.4. Repeatable."
        ),
    ] = None,
    record: options.Record = False,
    recordings: options.Recordings = 3,
    name: options.Name = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="TRACE", help="Trace to compare with, instead of a baseline; the report names causes."),
    ] = None,
    allow_changed_trace: Annotated[
        bool, typer.Option("--allow-changed-trace", help="Compare even if a trace differs from the baseline's.")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Replace the baseline with the current results.")] = False,
    ratchet: Annotated[
        bool, typer.Option("--ratchet", help="If all cases pass, store improved results in the baseline.")
    ] = False,
    reports: Annotated[
        list[str] | None,
        typer.Option(
            "--report",
            metavar="FORMAT[=FILE]",
            help="Format of the report: text, markdown, github, gitlab, junit or benchmark. Default: text; in "
            "CI on GitHub or GitLab, that service's format too. Repeatable.",
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file for `replay history`; each case adds a row.")
    ] = None,
    no_why: Annotated[bool, typer.Option("--no-why", help="Skip the search for causes of a failure.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure again, compare with the baseline, and fail if memory use got worse.

    Exit code 0: all cases pass. 1: a case is worse, new or missing. 2: an error, such as a changed trace.

    Example: replay check -t resident_bytes_peak:2%

    Example: replay check new.parquet --against old.parquet

    Example: replay check --record -n 5 -- job.py
    """
    from replay.gates.baselines import Baseline, read_baseline, write_baseline
    from replay.gates.checking import check as measure_and_judge
    from replay.gates.checking import ratchet as ratcheted
    from replay.gates.history import add_rows
    from replay.gates.tolerances import parse_rules
    from replay.support.progress import progress_bar

    if update and ratchet:
        raise ReplayError("--update takes all figures, --ratchet only what got better; choose one")
    rules = parse_rules(tolerances or [])
    chosen = options.choose(
        sources, allocators=allocators, fixed=fixed, env=env, seed=seed, suite_file=suite, baseline_file=baseline,
        record=record, recordings=recordings, name=name, more={"against": against},
    )  # fmt: skip
    if against is not None and chosen.is_whole:
        raise ReplayError("--against needs a source or --record; in a suite, set `against` in the case")
    wanted = _wanted_reports(reports, as_json)
    if update:
        options.take(chosen, force=True)
        return
    cases = chosen.suite.cases
    if allow_changed_trace:
        cases = {key: each.model_copy(update={"allow_changed_trace": True}) for key, each in cases.items()}
    known = judged_by = None
    if chosen.baseline.exists() or _needs_baseline(cases, rules, chosen.suite.tolerances):
        known = judged_by = read_baseline(chosen.baseline)
        if not chosen.is_whole:
            judged_by = Baseline(cases={key: each for key, each in known.cases.items() if key in cases})
    with told_compilation(), progress_bar("measuring") as progress:
        judged = chosen.suite.model_copy(update={"cases": cases})
        report = measure_and_judge(judged, judged_by, chosen.folder, rules=rules, causes=not no_why, progress=progress)
    tell_notes(report.notes)
    if history is not None or chosen.suite.history is not None:
        add_rows(history or chosen.folder / str(chosen.suite.history), report, chosen.folder)
    if ratchet and not report.failed and known is not None:
        better, count = ratcheted(known, report)
        write_baseline(chosen.baseline, better, force=True)
        say(f"{count} figures taken over: {chosen.baseline}", err=True)
    _tell(report, wanted, as_json)
    raise typer.Exit(1 if report.failed else 0)


def _needs_baseline(cases: dict[str, Any], rules: list[Any], suite_rules: list[str]) -> bool:
    """Whether some case is judged by something else than limits and a trace of before."""
    from replay.gates.tolerances import Limit, parse_rules

    def has_tolerance(case: Any) -> bool:
        mine = [*parse_rules(suite_rules), *parse_rules(case.tolerances), *rules]
        return not mine or any(not isinstance(rule, Limit) for rule in mine)

    return any(case.against is None and has_tolerance(case) for case in cases.values())


def _wanted_reports(said: list[str] | None, as_json: bool) -> list[tuple[str, str]]:
    """Formats and where they go; checked before anything is measured."""
    from replay.reports.checks import FORMATS, expected_here
    from replay.support.names import nearest

    if not said:
        return [] if as_json else [("text", SCREEN), *expected_here()]
    wanted = []
    for text in said:
        format_name, equals, file = text.partition("=")
        if format_name not in FORMATS:
            raise ReplayError(f"--report {text}: is no format; {nearest(format_name, FORMATS)}")
        if equals and not file:
            raise ReplayError(f"--report {text}: the file's name is empty; leave out = to print the report")
        wanted.append((format_name, file or SCREEN))
    return wanted


def _tell(report: "Report", wanted: list[tuple[str, str]], as_json: bool) -> None:
    import os

    from replay.reports.checks import render
    from replay.support.atomic_files import new_file

    if as_json:
        say(json.dumps(_as_json(report), indent=2))
    for format_name, file in wanted:
        rendered = render(format_name, report)
        if file == SCREEN:
            if rendered:
                say(rendered)
        elif file == os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(file).open("a", encoding="utf-8") as summary:  # other steps write there too
                summary.write(rendered)
        else:
            with new_file(file, force=True) as temporary:
                temporary.write_text(rendered + "\n", encoding="utf-8")


def _as_json(report: "Report") -> dict[str, Any]:
    cases = []
    for case in report.cases:
        findings = [{**asdict(each), "rule": str(each.rule), "failed": each.failed} for each in case.findings]
        findings = [
            {**each, **{key: each[key] and each[key].model_dump() for key in ("now", "before")}} for each in findings
        ]
        about = asdict(replace(case, findings=()))
        cases.append({**about, "findings": findings})
    return {"failed": report.failed, "cases": cases}
