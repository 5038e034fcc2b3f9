"""The results of a sweep as one polars frame: a row for each run, with all parameters and all metrics."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from replay.analysis.metrics import metric_names
from replay.config import rebuild_config
from replay.support.atomic_files import new_file, write_in_memory
from replay.support.errors import OutputError, ReplayError
from replay.support.version import identity
from replay.sweeps.configurations import Configuration, Skipped
from replay.sweeps.journal import CSV, OUTCOMES, RESULTS, read_about
from replay.sweeps.outcomes import Outcome, make_task
from replay.sweeps.plan import Plan
from replay.sweeps.space import ALLOCATOR, DEFAULT, DEFAULT_MALLOC
from replay.sweeps.traces import Input

_FIRST = {
    "run": pl.Int64,
    "configuration": pl.Int64,
    "default": pl.Boolean,
    "source": pl.String,
    "seed": pl.Int64,
    "status": pl.String,
    "error": pl.String,
}
_LAST = {
    "events": pl.Int64,
    "wall_ns": pl.Int64,
    "trace_digest": pl.String,
    "replay_version": pl.String,
    "python": pl.String,
    "stack": pl.String,
}
NOT_COMPARED = ("wall_ns", "python")
"""Columns that depend on the machine; all others are the same on every machine."""


@dataclass(frozen=True)
class Results:
    """The rows of a sweep.

    Columns of `frame`: run, configuration (its number), default, source, seed, status (done, stopped, failed, skipped,
    missing), error; one for each parameter; one for each metric; events, wall_ns, trace_digest, replay_version, python,
    and stack, the whole configuration as JSON.
    """

    frame: pl.DataFrame
    parameters: tuple[str, ...]
    objectives: tuple[str, ...]
    description: str = ""

    @property
    def done(self) -> pl.DataFrame:
        return self.frame.filter(pl.col("status") == "done")

    @property
    def has_one_source(self) -> bool:
        """Whether there is one trace, so that metrics are compared directly. Otherwise, ratios to the default are."""
        return self.frame["source"].drop_nulls().n_unique() == 1

    @property
    def judged_by(self) -> str:
        """The column by which a ranking is sorted."""
        return "mean" if self.has_one_source else "ratio"

    @property
    def notes(self) -> list[str]:
        """Notes about the stacks, each once."""
        stacks = self.frame["stack"].drop_nulls().unique(maintain_order=True).to_list()
        return list(dict.fromkeys(note for stack in stacks for note in rebuild_config(json.loads(stack)).notes))

    def count(self, status: str) -> int:
        return self.frame.filter(pl.col("status") == status).height


def collect(
    plan: Plan,
    tried: Sequence[Configuration | Skipped],
    inputs: Sequence[Input],
    outcomes: Mapping[str, Outcome],
) -> Results:
    """Returns the rows of all tried configurations, in the order of `tried`."""
    parameters = _parameters(tried)
    rows = list(_rows(tried, inputs, outcomes, parameters))
    rows = [{"run": number, **row} for number, row in enumerate(rows)]
    schema: dict[str, Any] = dict(_FIRST)
    schema |= {name: _type_of([row[name] for row in rows]) for name in parameters}
    found = [name for row in rows for name in row if name not in {*_FIRST, *_LAST, *parameters}]
    metrics = list(dict.fromkeys([*metric_names(), *plan.objectives, *found]))
    for row in rows:
        if row["status"] == "done":  # a counter of a model that is not in the stack is 0
            row.update({name: 0 for name in metrics if name not in row})
    schema |= {name: _type_of([row.get(name) for row in rows]) for name in metrics}
    schema |= _LAST
    for row in rows:
        for name in parameters:
            if schema[name] == pl.String and row[name] is not None:
                row[name] = str(row[name])
    frame = pl.DataFrame([[row.get(name) for name in schema] for row in rows], schema=schema, orient="row")
    return Results(frame, parameters, tuple(plan.objectives), plan.description)


def _parameters(tried: Sequence[Configuration | Skipped]) -> tuple[str, ...]:
    names = dict.fromkeys([ALLOCATOR, *(name for each in tried for name in each.parameters)])
    return tuple(names)


def _rows(
    tried: Sequence[Configuration | Skipped],
    inputs: Sequence[Input],
    outcomes: Mapping[str, Outcome],
    parameters: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(tried):
        shown = {name: _value(each, name) for name in parameters}
        about = {"configuration": number, **shown, "replay_version": identity()}
        if isinstance(each, Skipped):
            yield {**about, "default": False, "status": "skipped", "error": each.reason}
            continue
        about |= {"default": each.is_default, "stack": json.dumps(each.stack.model_dump(mode="json"), sort_keys=True)}
        for trace in inputs:
            task = make_task(trace, each)
            outcome = outcomes.get(task.key)
            row = {
                **about,
                "source": trace.source,
                "seed": trace.seed,
                "status": outcome.status if outcome else "missing",
            }
            if outcome:
                row |= {
                    name: getattr(outcome, name) for name in ("error", "events", "wall_ns", "trace_digest", "python")
                }
                row |= outcome.metrics
            yield row


def _value(each: Configuration | Skipped, name: str) -> Any:
    """Returns the stack's value of a configuration key, or the value of any other parameter."""
    setting = each.parameters.get(name, DEFAULT)
    if isinstance(each, Configuration):
        if name == ALLOCATOR:
            return each.stack.name if setting in (DEFAULT, DEFAULT_MALLOC) else setting
        section, dot, key = name.partition(".")
        if dot:
            value = getattr(getattr(each.stack, section), key, None)
            return None if value == DEFAULT else value
    return None if setting == DEFAULT else setting


def _type_of(values: Sequence[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Boolean
    if kinds <= {int}:
        fits = all(-(1 << 63) <= value < 1 << 63 for value in values if value is not None)
        return pl.Int64 if fits else pl.String
    return pl.Float64 if kinds <= {int, float} else pl.String


def write_results(results: Results, folder: Path, *, csv: bool = False) -> None:
    """Writes the frame into the folder of the journal."""
    with new_file(folder / RESULTS, force=True) as temporary:
        write_in_memory(results.frame.write_parquet, temporary)
    if csv:
        with new_file(folder / CSV, force=True) as temporary:
            write_in_memory(results.frame.write_csv, temporary)


def read_results(folder: Path) -> Results:
    """Returns the results in the folder of a sweep."""
    plan = Plan.model_validate(read_about(folder)["plan"])
    path = folder / RESULTS
    if not path.exists():
        saved = (folder / OUTCOMES).read_bytes().count(b"\n") if (folder / OUTCOMES).exists() else 0
        raise ReplayError(f"{folder}: the sweep was interrupted with {saved} runs done; finish it with --resume")
    try:
        frame = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OutputError(f"{path}: cannot be read: {error}") from error
    if list(frame.columns[: len(_FIRST)]) != list(_FIRST):
        raise ReplayError(f"{path}: was not written by a sweep of this version of replay")
    parameters = frame.columns[len(_FIRST) : frame.columns.index(metric_names()[0])]
    return Results(frame, tuple(parameters), tuple(plan.objectives), plan.description)
