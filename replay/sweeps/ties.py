"""Configurations of a sweep whose results are equal, so that a report shows them once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import polars as pl

from replay.sweeps.analysis import by_size, ranking
from replay.sweeps.results import Results

Row = dict[str, Any]


@dataclass(frozen=True)
class Tie:
    """Configurations with equal results in all metrics, traces and seeds. Most ties have one configuration."""

    rank: int
    """The position of its first configuration in the ranking, from 1."""
    rows: tuple[Row, ...]
    """Rows of a ranking. The first is the default, else the configuration with the fewest settings."""

    @property
    def is_default(self) -> bool:
        return bool(self.rows[0]["default"])

    @property
    def configuration(self) -> int:
        return int(self.rows[0]["configuration"])

    def values(self, parameters: Sequence[str]) -> list[list[Any]]:
        """Returns the values of each parameter, the first row's first.

        If the tie does not have all combinations of the values, returns only those of the first row.
        """
        first = [self.rows[0][name] for name in parameters]
        points = {tuple(row[name] for name in parameters) for row in self.rows}
        values = [
            [own, *sorted({*column} - {own}, key=by_size)]
            for own, column in zip(first, zip(*points, strict=True), strict=True)
        ]
        return values if prod(map(len, values)) == len(points) else [[own] for own in first]


def ties(results: Results, metrics: Sequence[str], *, merged: bool = True) -> list[Tie]:
    """Returns ties, ranked by the first metric, then by the others. Without `merged`, each configuration is a tie."""
    rows = ranking(results, metrics[0]).rows(named=True)
    judged = [_judged(results, metric) for metric in metrics]
    rows.sort(key=lambda row: [each[row["configuration"]] for each in judged])
    figures = results.done.sort("source", "seed").group_by("configuration").agg("source", *map(pl.col, metrics))
    keys = {row[0]: tuple(map(tuple, row[1:])) for row in figures.rows()}
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(keys[row["configuration"]] if merged else row["configuration"], []).append(row)
    rank, found = 1, []
    for equal in groups.values():
        equal.sort(key=lambda row: (not row["default"], _settings(results, row)))
        found.append(Tie(rank, tuple(equal)))
        rank += len(equal)
    return found


def _judged(results: Results, metric: str) -> dict[int, float]:
    """Returns the value that ranks each configuration; infinite if it cannot be compared."""
    table = ranking(results, metric).select("configuration", pl.col(results.judged_by).fill_null(float("inf")))
    return dict(table.iter_rows())


def _settings(results: Results, row: Row) -> int:
    """Returns the number of parameters that are set (not null)."""
    return sum(row[name] is not None for name in results.parameters)
