"""What `baseline` and `check` share: the choice of the cases and of the baseline file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replay.commands.lists import split_list
from replay.commands.notes import print_notes
from replay.support.errors import ConfigError, OutputError, ReplayError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.gates.cases import Suite

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE", help="Traces or workloads. Default: the cases of the suite."),
]
Allocators = Annotated[
    list[str] | None,
    typer.Option(
        "-a", "--allocator", metavar="PRESET,…", help="Presets or YAML files; each makes a case of each SOURCE."
    ),
]
SuiteFile = Annotated[
    Path | None,
    typer.Option("--suite", metavar="FILE", help="File with the cases. Default: replay.toml or pyproject.toml."),
]
BaselineFile = Annotated[
    Path | None, typer.Option("--baseline", metavar="FILE", help="Baseline file. Default: replay-baseline.json.")
]
Record = Annotated[bool, typer.Option("--record", help="Record the program after `--`, instead of opening traces.")]
Recordings = Annotated[
    int,
    typer.Option("-n", "--recordings", min=1, help="With --record: number of recordings; their median is compared."),
]
Name = Annotated[
    str | None, typer.Option("--name", help="With --record: name of the case. Default: the script's name.")
]

Tolerances = Annotated[
    list[str] | None,
    typer.Option(
        "-t", "--tolerance", metavar="RULE", help="Rule such as resident_bytes_peak:2% or blowup<=1.4. Repeatable."
    ),
]
Against = Annotated[
    str | None,
    typer.Option(metavar="TRACE", help="Trace to compare with, instead of a baseline; the report names causes."),
]
AllowChangedTrace = Annotated[
    bool, typer.Option("--allow-changed-trace", help="Compare even if a trace differs from the baseline's.")
]
Update = Annotated[bool, typer.Option("--update", help="Replace the baseline with the current results.")]
Ratchet = Annotated[bool, typer.Option("--ratchet", help="If all cases pass, store improved results in the baseline.")]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="FORMAT[=FILE]",
        help="Format of the report: text, markdown, github, gitlab, junit or benchmark. Default: text; in "
        "CI on GitHub or GitLab, that service's format too. Repeatable.",
    ),
]
History = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Parquet file for `replay history`; each case adds a row.")
]
NoWhy = Annotated[bool, typer.Option("--no-why", help="Skip the search for causes of a failure.")]


@dataclass(frozen=True)
class Chosen:
    """The cases of a command line."""

    suite: "Suite"
    folder: Path
    """The folder to which paths in the cases are relative."""
    baseline: Path
    is_whole: bool
    """Whether these are all cases of the suite; other cases of the baseline no longer exist."""


def choose(
    words: list[str] | None,
    *,
    allocators: list[str] | None,
    fixed: list[str] | None,
    env: list[str] | None,
    seed: int | None,
    suite_file: Path | None,
    baseline_file: Path | None,
    record: bool,
    recordings: int,
    name: str | None,
    more: dict[str, Any] | None = None,
) -> Chosen:
    """Returns the cases of the command line; without any, those of the suite, else those of the baseline."""
    from replay.gates.baselines import read_baseline
    from replay.gates.cases import Suite, find_suite, load_suite

    found = suite_file or find_suite(Path.cwd())
    suite = load_suite(found) if found else Suite()
    folder = found.parent if found else Path.cwd()
    baseline = baseline_file or folder / suite.baseline
    if name is not None and not record:
        raise ReplayError("--name requires --record; other cases have the name of their source or of the suite")
    if words or record:
        common = {"allocator": None, "set": _pairs("--set", fixed), "env": _pairs("--env", env), **(more or {})}
        cases = (
            _recorded_case(words, allocators, recordings, name, common)
            if record
            else _simulated_cases(words or [], allocators, seed, common)
        )
        for case in cases.values():
            case.stack()  # a mistake in it is an error before anything is read or measured
        return Chosen(suite.model_copy(update={"cases": cases}), Path.cwd(), baseline, is_whole=False)
    if allocators or fixed or env or seed is not None:
        raise ReplayError("-a, --set, --env and --seed require a SOURCE; cases of a suite have settings of their own")
    if not suite.cases:
        if not baseline.exists():
            raise ReplayError("nothing to measure: name a source, or write cases into replay.toml")
        cases = {name: each.case for name, each in read_baseline(baseline).cases.items()}
        return Chosen(suite.model_copy(update={"cases": cases}), baseline.parent, baseline, is_whole=True)
    return Chosen(suite, folder, baseline, is_whole=True)


def measure_into_baseline(chosen: Chosen, *, force: bool) -> None:
    """Measures the cases and writes them into the baseline. Replaces existing cases only with `force`."""
    from replay.commands.compilation import report_compilation
    from replay.gates.baselines import Baseline, read_baseline, write_baseline
    from replay.gates.checking import kept_recordings, take_baseline
    from replay.support.atomic_files import new_target
    from replay.support.progress import progress_bar

    afresh = force and chosen.is_whole
    known = read_baseline(chosen.baseline) if chosen.baseline.exists() and not afresh else Baseline()
    existing = [case for case in chosen.suite.cases if case in known.cases]
    if existing and not force:
        advice = "compare with it by `replay check`, or replace it with --force"
        raise OutputError(f"{chosen.baseline}: already has the case {existing[0]}; {advice}")
    recordings = kept_recordings(chosen.suite)
    for file in recordings.values():
        new_target(chosen.folder / file, force=force)  # refuses an existing file before anything is measured
    with report_compilation(), progress_bar("measuring") as progress:
        taken, notes = take_baseline(chosen.suite, chosen.folder, progress=progress)
    print_notes(notes)
    write_baseline(chosen.baseline, known.with_cases(taken.cases), force=True)
    say(f"measured: {', '.join(taken.cases)}\nwritten: {printable(str(chosen.baseline))}")
    for name, file in recordings.items():
        say(f"written: {printable(str(chosen.folder / file))}, the recording of {name} with the median peak")


def _simulated_cases(
    sources: list[str], allocators: list[str] | None, seed: int | None, common: dict[str, Any]
) -> dict[str, Any]:
    names = split_list(allocators) or []
    cases: dict[str, Any] = {}
    for source in sources:
        for allocator in names or [None]:  # type: ignore[list-item]
            case = Path(source).stem + (f"@{allocator}" if len(names) > 1 else "")
            if case in cases:
                raise ConfigError(f"{case}: two cases would have this name; name them in a suite")
            cases[case] = _case({**common, "source": source, "allocator": allocator, "seed": seed})
    return cases


def _recorded_case(
    words: list[str] | None, allocators: list[str] | None, recordings: int, name: str | None, common: dict[str, Any]
) -> dict[str, Any]:
    if not words:
        raise ReplayError("--record: the program is missing; name it after --: `replay check --record -- job.py`")
    program = words[1:] if Path(words[0]).name.startswith("python") else words
    if not program:
        raise ReplayError(f"--record: {words[0]} has nothing to run; name a script, -m and a module, or -c and code")
    if allocators and (len(allocators) > 1 or "," in allocators[0]):
        raise ReplayError("--record: only one allocator can be named; record a trace to compare several")
    default = program[1].replace(".", "-") if program[0] == "-m" and len(program) > 1 else Path(program[0]).stem
    data = {**common, "record": program, "recordings": recordings, "allocator": allocators[0] if allocators else None}
    return {name or default: _case(data)}


def _case(data: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from replay.gates.cases import Case

    try:
        return Case.model_validate({key: value for key, value in data.items() if value is not None})
    except ValidationError as mistakes:
        first = mistakes.errors(include_url=False)[0]
        raise ConfigError(str(first.get("ctx", {}).get("error", first["msg"]))) from None


def _pairs(option: str, assignments: list[str] | None) -> dict[str, Any]:
    pairs = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {assignment}: write it like NAME=VALUE")
        pairs[name] = value
    return pairs
