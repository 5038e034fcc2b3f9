"""The baseline file: sorted JSON with one line for each metric, so that a diff is easy to review."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from replay import __version__
from replay.analysis.metrics import check_metric, is_detail
from replay.gates.cases import Case
from replay.support.atomic_files import new_file
from replay.support.errors import ConfigError, ReplayError, explain_parsing
from replay.support.yaml_documents import read_document

FORMAT = 1
_BYTES_MAX = 64 << 20
"""Maximum size of the file. A case takes about 2 KiB."""


class Figure(BaseModel):
    """A metric's value. For several recordings: median, lowest and highest value."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        return self.high - self.low


NOTHING = Figure(value=0, low=0, high=0)


class Measured(BaseModel):
    """The figures of a case, and digests of the trace and the configuration that it was measured with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: Case
    trace: str | None
    """Digest; None for recorded programs, whose recordings always differ."""
    stack: str
    """Digest of the configuration."""
    figures: dict[str, Figure]


class Baseline(BaseModel):
    """The measured cases by name."""

    model_config = ConfigDict(frozen=True)

    version: str = __version__
    cases: dict[str, Measured] = {}

    def with_cases(self, cases: Mapping[str, Measured]) -> "Baseline":
        return Baseline(cases={**self.cases, **cases})


def figures_for(ruled: Iterable[str], figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Returns the figures, and those that rules name: a counter of a model that is not in the stack is 0."""
    return dict(figures) | {name: NOTHING for name in ruled if name not in figures}


def without_details(measured: Measured, ruled: Iterable[str] = ()) -> Measured:
    """Returns the measurement with the metrics of a baseline: all but the details, and the details that rules name."""
    wanted = set(ruled)
    figures = figures_for(wanted, measured.figures)
    kept = {name: figure for name, figure in figures.items() if name in wanted or not is_detail(name)}
    return measured.model_copy(update={"figures": kept})


def read_baseline(path: Path, advice: str = "store new figures with `replay check --update`") -> Baseline:
    """Returns the baseline in a file. Raises ReplayError if another version of replay wrote it.

    `advice`: how to make a valid baseline, for error messages.
    """
    if not path.exists():
        raise ReplayError(f"{path}: the baseline does not exist; `replay baseline` writes it")
    text = read_document(path, ConfigError, _BYTES_MAX)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as mistake:
        raise ConfigError(f"{path}: is not valid JSON: {explain_parsing(mistake)}") from None
    try:
        if content["format"] != FORMAT:
            raise ConfigError(f"{path}: has format {content['format']}; this version of replay reads {FORMAT}")
        baseline = Baseline(
            version=content["replay"], cases={name: _parse(each) for name, each in content["cases"].items()}
        )
    except (KeyError, TypeError, ValueError, AttributeError) as mistake:
        raise ConfigError(
            f"{path}: is not a baseline that replay wrote ({type(mistake).__name__}: {_first(mistake)})"
        ) from None
    if baseline.version != __version__:
        raise ReplayError(
            f"{path}: was written by replay {baseline.version}; figures of this version, {__version__}, may differ; "
            f"check the old commit with this version, or {advice}"
        )
    return baseline


def _first(mistake: Exception) -> str:
    return str(mistake).partition("\n")[0]


def _parse(data: dict[str, Any]) -> Measured:
    figures = {}
    for name, value in data["metrics"].items():
        check_metric(name)
        low, middle, high = value if isinstance(value, list) else [value] * 3
        figures[name] = Figure(value=middle, low=low, high=high)
    return Measured(case=Case.model_validate(data["case"]), trace=data["trace"], stack=data["stack"], figures=figures)


def write_baseline(path: Path, baseline: Baseline, *, force: bool) -> None:
    """Writes one line for each metric; `[lowest, median, highest]` if several recordings differ."""
    cases = {}
    for name, each in sorted(baseline.cases.items()):
        cases[name] = {
            "case": each.case.model_dump(by_alias=True, exclude_defaults=True, mode="json"),
            "metrics": {metric: _plain(figure) for metric, figure in sorted(each.figures.items())},
            "stack": each.stack,
            "trace": each.trace,
        }
    text = json.dumps({"cases": cases, "format": FORMAT, "replay": baseline.version}, indent=1, sort_keys=True)
    with new_file(path, force=force) as temporary:
        temporary.write_text(_with_short_lists(text) + "\n", encoding="utf-8")


def _plain(figure: Figure) -> Any:
    values = [_whole(figure.low), _whole(figure.value), _whole(figure.high)]
    return values if figure.spread else values[1]


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else round(value, 9)


def _with_short_lists(text: str) -> str:
    """Returns the JSON text with each list on one line."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        if inside:
            lines[-1] += line.strip() + (" " if line.rstrip().endswith(",") else "")
            inside = not line.strip().startswith("]")
        else:
            lines.append(line)
            inside = line.endswith("[")
    return "\n".join(lines)
