"""The results of a sweep as one JSON object; docs/sweeps.md lists its keys."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from replay.sweeps.analysis import main_effects, pareto, ranking
from replay.sweeps.results import Results
from replay.sweeps.verdict import judge, parameter_effects


def sweep_as_json(results: Results, objectives: Sequence[str], *, within: float) -> dict[str, Any]:
    """Returns runs, verdict, ranking and effects by metric, and the Pareto front."""
    analysed = bool(results.done.height)

    def by_metric(frame_of: Callable[[str], pl.DataFrame]) -> dict[str, Any]:
        return {metric: frame_of(metric).to_dicts() if analysed else [] for metric in objectives}

    return {
        "runs": results.frame.drop("stack").to_dicts(),
        "verdict": asdict(judge(results, objectives if analysed else (), within=within)),
        "ranking": by_metric(lambda metric: ranking(results, metric)),
        "effects": by_metric(lambda metric: parameter_effects(results, metric, within=within)),
        "main_effects": by_metric(lambda metric: main_effects(results, metric)),
        "pareto": pareto(results, objectives).to_dicts() if analysed and len(objectives) > 1 else [],
    }
