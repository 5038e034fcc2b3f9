"""The file of what was measured before: JSON with a line a metric, sorted, so that a change reads well in a review."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from replay import __version__
from replay.analysis.metrics import check_metric, metric_names
from replay.gates.cases import Case
from replay.support.atomic_files import new_file
from replay.support.errors import ConfigError, ReplayError, explain_parsing
from replay.support.yaml_documents import read_document

FORMAT = 1
_BYTES_MAX = 64 << 20
"""Of the file; a case takes about two KiB."""
_DETAILS = ("_at_peak", "_mean", "simulated_ns.", "syscall_bytes")
"""Parts of names of metrics that a baseline keeps only where a rule is about them: details that explain others, and
means over time, which depend on how fast a recorded program ran."""


class Figure(BaseModel):
    """A metric's value; over several recordings the median, and the lowest and highest."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        return self.high - self.low


class Measured(BaseModel):
    """What a case came to, and of what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: Case
    trace: str | None
    """Digest; None of recordings, no two of which are the same."""
    stack: str
    """Digest of the configuration."""
    figures: dict[str, Figure]


class Baseline(BaseModel):
    """All cases, by name."""

    model_config = ConfigDict(frozen=True)

    version: str = __version__
    cases: dict[str, Measured] = {}

    def with_cases(self, cases: Mapping[str, Measured]) -> "Baseline":
        return Baseline(cases={**self.cases, **cases})


def kept_metrics(ruled: Iterable[str] = ()) -> list[str]:
    """The metrics that a baseline keeps: all but details, and the details that a rule is about."""
    wanted = set(ruled)
    return [name for name in metric_names() if name in wanted or not any(part in name for part in _DETAILS)]


def without_details(measured: Measured, ruled: Iterable[str] = ()) -> Measured:
    """As a baseline keeps it."""
    kept = {name: measured.figures[name] for name in kept_metrics(ruled)}
    return measured.model_copy(update={"figures": kept})


def read_baseline(path: Path, retake: str = "take the present figures by `replay check --update`") -> Baseline:
    """The baseline in a file; it must be of this version of replay, whose figures it is compared with.

    `retake`: how to make a valid one.
    """
    if not path.exists():
        raise ReplayError(f"{path}: there is no baseline; `replay baseline` writes one")
    text = read_document(path, ConfigError, _BYTES_MAX)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as mistake:
        raise ConfigError(f"{path}: is not valid JSON: {explain_parsing(mistake)}") from None
    try:
        if content["format"] != FORMAT:
            raise ConfigError(f"{path}: is of format {content['format']}; this replay reads {FORMAT}")
        baseline = Baseline(
            version=content["replay"], cases={name: _parse(each) for name, each in content["cases"].items()}
        )
    except (KeyError, TypeError, AttributeError, ValidationError) as mistake:
        raise ConfigError(
            f"{path}: is not a baseline that replay wrote ({type(mistake).__name__}: {_first(mistake)})"
        ) from None
    if baseline.version != __version__:
        raise ReplayError(
            f"{path}: was made by replay {baseline.version}, and this is {__version__}, whose figures may differ; "
            f"check the old commit with this one, or {retake}"
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
    """A line a metric; over several recordings `[lowest, median, highest]` where they differ."""
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
    """Lists on one line."""
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
