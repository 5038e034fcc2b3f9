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
    """Configurations with equal results in all metrics, traces and seeds; mostly it is one configuration."""

    rank: int
    """The position in the ranking of the first of them, from 1."""
    rows: tuple[Row, ...]
    """Rows of a ranking; the first is the default, else the configuration with the fewest settings."""

    @property
    def is_default(self) -> bool:
        return bool(self.rows[0]["default"])

    @property
    def configuration(self) -> int:
        return int(self.rows[0]["configuration"])

    def values(self, parameters: Sequence[str]) -> list[list[Any]]:
        """The values of each parameter, beginning with the first row's.

        It is one value each if the tie does not have all their combinations.
        """
        first = [self.rows[0][name] for name in parameters]
        points = {tuple(row[name] for name in parameters) for row in self.rows}
        values = [
            [own, *sorted({*column} - {own}, key=by_size)]
            for own, column in zip(first, zip(*points, strict=True), strict=True)
        ]
        return values if prod(map(len, values)) == len(points) else [[own] for own in first]


def ties(results: Results, metrics: Sequence[str], *, merged: bool = True) -> list[Tie]:
    """The ranking by the first metric, then by the others. Not `merged`: a tie for each configuration."""
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
    """What each configuration is judged by; infinite where there is nothing to compare with."""
    table = ranking(results, metric).select("configuration", pl.col(results.judged_by).fill_null(float("inf")))
    return dict(table.iter_rows())


def _settings(results: Results, row: Row) -> int:
    """How many parameters are set; those that are not set are null."""
    return sum(row[name] is not None for name in results.parameters)
