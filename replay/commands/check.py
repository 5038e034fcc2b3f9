"""`replay check`: measures cases and compares them with a baseline; the exit code says whether they pass."""

import typer

from replay.commands import gate_options as options
from replay.commands.check_plan import CheckPlan
from replay.commands.check_reports import parse_reports, show_reports
from replay.commands.notes import print_notes
from replay.commands.options import AsJson, Env, Fixed, Seed
from replay.support.errors import ReplayError


def check(
    sources: options.Sources = None,
    allocators: options.Allocators = None,
    fixed: Fixed = None,
    env: Env = None,
    seed: Seed = None,
    suite: options.SuiteFile = None,
    baseline: options.BaselineFile = None,
    tolerances: options.Tolerances = None,
    record: options.Record = False,
    recordings: options.Recordings = 3,
    name: options.Name = None,
    against: options.Against = None,
    allow_changed_trace: options.AllowChangedTrace = False,
    update: options.Update = False,
    ratchet: options.Ratchet = False,
    reports: options.Reports = None,
    history: options.History = None,
    no_why: options.NoWhy = False,
    as_json: AsJson = False,
) -> None:
    """Measure again, compare with the baseline, and fail if memory use got worse.

    Exit code 0: all cases pass. 1: a case is worse, new or missing. 2: an error, such as a changed trace.

    Example: replay check -t resident_bytes_peak:2%

    Example: replay check new.parquet --against old.parquet

    Example: replay check --record -n 5 -- job.py
    """
    from replay.gates.tolerances import parse_rules

    if update and ratchet:
        raise ReplayError("--update takes all figures, --ratchet only what got better; choose one")
    rules = parse_rules(tolerances or [])
    chosen = options.choose(
        sources, allocators=allocators, fixed=fixed, env=env, seed=seed, suite_file=suite, baseline_file=baseline,
        record=record, recordings=recordings, name=name, more={"against": against},
    )  # fmt: skip
    if against is not None and chosen.is_whole:
        raise ReplayError("--against needs a source or --record; in a suite, set `against` in the case")
    wanted = parse_reports(reports, as_json)
    if update:
        options.measure_into_baseline(chosen, force=True)
        return
    plan = CheckPlan(chosen, rules, allow_changed_trace=allow_changed_trace, causes=not no_why)
    report = plan.measure()
    print_notes(report.notes)
    plan.add_to_history(report, history)
    if ratchet:
        plan.keep_better(report)
    show_reports(report, wanted, as_json)
    raise typer.Exit(1 if report.failed else 0)
