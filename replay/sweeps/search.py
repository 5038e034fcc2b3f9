"""Searches for the best configurations without trying all of them. Optuna suggests the next points.



Trials form generations. Optuna makes all suggestions of a generation before it gets any of their results, and it gets
the results in the order of the suggestions. So the search is the same with one processor or a cluster, and a resumed
search finds its outcomes again.

A run is ended as soon as a result that was known before its generation dominates it, for example because its peak is
already higher. This is exact, because it is done only for metrics that cannot fall.
"""

from typing import TYPE_CHECKING, Any

from replay.support.errors import ConfigError, ReplayError
from replay.sweeps.analysis import ratio, undominated
from replay.sweeps.configurations import Configuration, Skipped, configurations, impossible, point_text
from replay.sweeps.outcomes import Front
from replay.sweeps.plan import Plan
from replay.sweeps.runs import Runs
from replay.sweeps.space import Point, Range, Values, grid_size, levels

if TYPE_CHECKING:
    import optuna

GENERATION = 8
"""Number of trials in a generation: enough for all processors, few enough that suggestions improve."""
_MISSES_MAX = 50
"""The search ends after this number of consecutive generations without a new point."""


class Search:
    """A search in the space of a sweep."""

    def __init__(self, runs: Runs, trials: int, *, strict: bool) -> None:
        self._runs, self._trials, self._strict = runs, trials, strict
        self._objectives = runs.plan.objectives
        self._space = runs.resolver.space
        self._fronts: list[dict[str, float]] = []
        self._seed = runs.plan.choose.seed
        self._learner = _import().samplers.TPESampler(seed=self._seed, constant_liar=True)

    @staticmethod
    def check(plan: Plan) -> None:
        """Raises ConfigError for a plan without a space to search."""
        _import()
        if not plan.vary:
            raise ConfigError("nothing to search: vary at least one parameter")
        if plan.configurations or plan.choose.kind != "grid":
            raise ConfigError("a search chooses its points; remove `configurations` and `choose`")

    def run(self) -> None:
        """Simulates the default, then one generation after the other; or all points if there are at most `trials`."""
        self._runs.keep_traces()
        size = grid_size(self._space)
        inputs = len(self._runs.inputs)
        if size is not None and size <= self._trials:
            self._do_all()
            return
        study = self._new_study()
        tried: set[str] = set()
        self._do([self._runs.resolver.default], inputs * self._trials)
        tried.add(self._runs.resolver.default.key)
        refused: set[str] = set()
        misses = 0
        while len(tried) < self._trials and misses < _MISSES_MAX:
            study.sampler = self._sampler(misses)
            trials = [study.ask() for _ in range(min(GENERATION, self._trials - len(tried)))]
            resolved = [self._runs.resolver.resolve(self._suggest(trial)) for trial in trials]
            fresh: dict[str, Configuration] = {}
            skipped: dict[str, Skipped] = {}
            for configuration in resolved:
                if isinstance(configuration, Skipped):
                    self._refuse(configuration)
                    skipped.setdefault(point_text(configuration.parameters), configuration)
                elif configuration.key not in tried:
                    fresh.setdefault(configuration.key, configuration)
            tried |= fresh.keys()
            newly_skipped = [configuration for name, configuration in skipped.items() if name not in refused]
            refused |= skipped.keys()
            self._do([*fresh.values(), *newly_skipped], inputs * self._trials)
            for trial, configuration in zip(trials, resolved, strict=True):
                self._tell(study, trial, configuration)
            misses = 0 if fresh else misses + 1

    def _do_all(self) -> None:
        everything = configurations(self._runs.resolver, strict=self._strict)
        expected = len(everything) * len(self._runs.inputs)
        for start in range(0, len(everything), GENERATION):
            self._do(everything[start : start + GENERATION], expected)

    def _refuse(self, skipped: Skipped) -> None:
        if self._strict:
            raise impossible(skipped)

    def _do(self, generation: list[Configuration | Skipped], expected: int) -> None:
        self._runs.do(generation, self._front(), expected)
        if len(self._runs.inputs) == 1:
            for configuration in generation:
                outcome = (
                    self._runs.outcome(configuration, self._runs.inputs[0])
                    if isinstance(configuration, Configuration)
                    else None
                )
                if outcome is not None and outcome.status == "done":
                    self._fronts.append({name: float(outcome.value(name)) for name in self._objectives})

    def _front(self) -> Front:
        """Returns the undominated results. Empty with several traces, whose runs are not ended early."""
        best = undominated(tuple(result.values()) for result in self._fronts)
        return tuple(dict(zip(self._objectives, point, strict=True)) for point in best)

    def _new_study(self) -> "optuna.Study":
        optuna = _import()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna.create_study(directions=["minimize"] * len(self._objectives))

    def _sampler(self, misses: int) -> "optuna.samplers.BaseSampler":
        """Returns the learning sampler; a random one after generations without a new point."""
        if misses:
            return _import().samplers.RandomSampler(seed=self._seed + misses)
        return self._learner

    def _suggest(self, trial: "optuna.Trial") -> Point:
        return {name: _suggest(trial, name, values) for name, values in self._space.items()}

    def _tell(self, study: "optuna.Study", trial: "optuna.Trial", configuration: Configuration | Skipped) -> None:
        scores = self._scores(configuration) if isinstance(configuration, Configuration) else None
        if scores is None:
            study.tell(trial, state=_import().trial.TrialState.FAIL)
        else:
            study.tell(trial, scores)

    def _scores(self, configuration: Configuration) -> list[float] | None:
        """Returns the mean ratio to the default for each objective; None if a run failed."""
        totals = [0.0] * len(self._objectives)
        for trace in self._runs.inputs:
            outcome = self._runs.outcome(configuration, trace)
            default = self._runs.outcome(self._runs.resolver.default, trace)
            if outcome is None or default is None or "failed" in (outcome.status, default.status):
                return None
            for index, name in enumerate(self._objectives):
                totals[index] += ratio(outcome.value(name), default.value(name))
        return [total / len(self._runs.inputs) for total in totals]


def _import() -> Any:
    try:
        import optuna
    except ImportError:
        raise ReplayError("a search requires Optuna; pip install 'alloc-replay[search]'") from None
    return optuna


def _suggest(trial: "optuna.Trial", name: str, values: Values) -> Any:
    """Returns Optuna's suggestion. Ordered numbers are declared as ordered: neighbours have similar results."""
    if isinstance(values, Range) and values.is_continuous:
        if isinstance(values.first, int) and isinstance(values.last, int):
            return trial.suggest_int(name, values.first, values.last, log=values.scale == "log")
        return trial.suggest_float(name, values.first, values.last, log=values.scale == "log")
    countable = levels(name, values)
    numbers = [value for value in countable if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(countable) and numbers == sorted(numbers):
        return countable[trial.suggest_int(name, 0, len(countable) - 1)]
    return countable[trial.suggest_categorical(name, range(len(countable)))]
