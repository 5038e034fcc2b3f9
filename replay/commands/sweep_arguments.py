"""The plan that the command line of `replay sweep` describes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.commands.options import time_option
from replay.support.errors import ConfigError

if TYPE_CHECKING:
    from replay.sweeps.plan import Plan

Texts = list[str] | None
SEEDS_MAX = 10_000
_RANGE = re.compile(r"(?P<first>[^.].*?)\.\.(?P<last>.+?)(:(?P<how>[+*])(?P<by>.+))?")


@dataclass(frozen=True)
class PlanArguments:
    """The options that describe a plan, as text."""

    plan: str | None
    sources: Texts
    seeds: str | None
    fixed: Texts
    allocators: Texts
    grid: Texts
    env: Texts
    random: int | None
    latin: int | None
    choose_seed: int | None
    where: Texts
    by: Texts
    optimise: Texts
    trim_every: str | None

    def to_plan(self) -> "Plan":
        """Returns the plan of the file, or an empty plan. Options replace its keys; constraints are added."""
        from replay.sweeps.plan import Plan, load_plan, make_plan

        if self.trim_every:
            time_option("--trim-every", self.trim_every)
        plan = load_plan(self.plan) if self.plan else Plan()
        data = plan.model_dump(by_alias=True, exclude_unset=True)
        fixed, vary = _assignments("--set", self.fixed), _vary(self.allocators, self.grid, self.env)
        data["fixed"] = {**_without(data.get("fixed", {}), vary), **fixed}
        data["vary"] = {**_without(data.get("vary", {}), fixed), **vary}
        data["constraints"] = [*data.get("constraints", []), *(self.where or [])]
        data["choose"] = self._choose(data.get("choose", {}))
        replaced = {
            "sources": self.sources,
            "seeds": _seeds(self.seeds),
            "objectives": self.optimise or self.by,
            "trim_every": self.trim_every,
        }
        data |= {key: value for key, value in replaced.items() if value}
        if not data["vary"] and not data.get("configurations"):
            raise ConfigError("the grid is empty: add --grid, --env, -a or --plan")
        return make_plan(data)

    def _choose(self, of_file: dict[str, Any]) -> dict[str, Any]:
        chosen = _choose(self.random, self.latin, self.choose_seed)
        if self.optimise:
            if "kind" in chosen:
                raise ConfigError("--optimise chooses the points; remove --random and --latin")
            of_file = {key: value for key, value in of_file.items() if key == "seed"}
        return {**of_file, **chosen}


def _without(values: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _vary(allocators: Texts, grid: Texts, env: Texts) -> dict[str, Any]:
    from replay.sweeps.space import TRIM_EVERY

    vary: dict[str, Any] = {}
    if allocators:
        vary["allocator"] = [name for text in allocators for name in text.split(",") if name]
        if not vary["allocator"]:
            raise ConfigError("-a: the preset is missing")
    for option, assignments in (("--grid", grid), ("--env", env)):
        for name, text in _split(option, assignments):
            if ("." in name or name == TRIM_EVERY) != (option == "--grid"):
                kind = "a configuration key such as pymalloc.alignment" if option == "--grid" else "a variable of glibc"
                raise ConfigError(f"{option} {name}: not {kind}")
            if name in vary:
                raise ConfigError(f"{option} {name}: given twice")
            vary[name] = _values(f"{option} {name}={text}", text)
    return vary


def _split(option: str, assignments: Texts) -> Iterator[tuple[str, str]]:
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            example = "MALLOC_ARENA_MAX=1,2" if option == "--env" else "pymalloc.alignment=8,16"
            raise ConfigError(f"{option} {assignment}: write it like {example}")
        yield name.strip(), text


def _assignments(option: str, assignments: Texts) -> dict[str, Any]:
    fixed = {}
    for name, text in _split(option, assignments):
        values = _values(f"{option} {name}={text}", text)
        if not isinstance(values, list) or len(values) != 1:
            raise ConfigError(f"{option} {name}={text}: more than one value; use --grid to vary a key")
        fixed[name] = values[0]
    return fixed


def _values(option: str, text: str) -> Any:
    """Returns a list of YAML values, or a range."""
    from replay.support.yaml_documents import parse_yaml

    match = _RANGE.fullmatch(text.strip())
    if match and "," not in text:
        parts: dict[str, Any] = {"from": _scalar(match["first"]), "to": _scalar(match["last"])}
        if match["how"]:
            parts["step" if match["how"] == "+" else "factor"] = _scalar(match["by"])
        return parts
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError as mistake:
        raise ConfigError(f"{option}: is not a list of values such as 8,16: {mistake}") from None
    if not values:
        raise ConfigError(f"{option}: the values are missing; write it like 8,16")
    return values


def _scalar(text: str) -> Any:
    from replay.support.yaml_documents import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError:
        return text


def _choose(random: int | None, latin: int | None, seed: int | None) -> dict[str, Any]:
    if random and latin:
        raise ConfigError("--random and --latin exclude each other")
    kind = "random" if random else "latin" if latin else "grid"
    chosen = {"kind": kind, "runs": random or latin} if kind != "grid" else {}
    return chosen | ({"seed": seed} if seed is not None else {})


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    first, dots, last = text.partition("..")
    try:
        if dots and int(last) - int(first) >= SEEDS_MAX:
            raise ConfigError(f"--seeds {text}: more than {SEEDS_MAX:,} seeds")
        seeds = list(range(int(first), int(last) + 1)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds {text}: write it like 0,1,2 or 0..9")
    return seeds
