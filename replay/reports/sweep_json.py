"""The results of a sweep as one JSON object; docs/sweeps.md lists its keys."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from replay.sweeps.analysis import main_effects, pareto, ranking
from replay.sweeps.results import Results
from replay.sweeps.verdict import judge, parameter_effects


def sweep_as_json(results: Results, objectives: Sequence[str], *, within: float) -> dict[str, Any]:
    """Runs, verdict, ranking and effects by metric, Pareto front."""
    analysed = objectives if results.done.height else ()
    effects = {metric: parameter_effects(results, metric, within=within).to_dicts() for metric in analysed}
    return {
        "runs": results.frame.drop("stack").to_dicts(),
        "verdict": asdict(judge(results, analysed, within=within)),
        "ranking": {metric: ranking(results, metric).to_dicts() for metric in analysed},
        "effects": effects,
        "main_effects": {metric: main_effects(results, metric).to_dicts() for metric in analysed},
        "pareto": pareto(results, objectives).to_dicts() if len(analysed) > 1 else [],
    }
