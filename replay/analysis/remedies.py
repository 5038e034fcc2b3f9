"""Remedies: what a user can set without a change of the program, each simulated on the same trace."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from replay.analysis.metrics import Summary
from replay.config import StackConfig, load_config
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.support.errors import ConfigError, TraceError
from replay.support.units import format_time
from replay.trace import Trace

TRIMS = 20
"""How many calls of malloc_trim a run has."""
WORTHWHILE, WORTHWHILE_BYTES = 0.05, 1 << 20
"""A remedy is worth trying if it saves at least this share and so many bytes of the mean, or of the memory at end."""


_FIELDS = {
    "MALLOC_ARENA_MAX": "arena_max",
    "MALLOC_MMAP_THRESHOLD_": "mmap_threshold",
    "MALLOC_TRIM_THRESHOLD_": "trim_threshold",
}
"""The setting of glibc's model by environment variable."""


@dataclass(frozen=True)
class Remedy:
    """A change of settings, and the resident memory of a run with it."""

    name: str
    """As a user sets it in production."""
    options: tuple[str, ...]
    """The options of `replay run` that simulate it."""
    resident_bytes_mean: int
    resident_bytes_end: int
    resident_bytes_peak: int


@dataclass(frozen=True)
class _Change:
    name: str
    overrides: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    trims: bool = False


def _changes(stack: StackConfig, has_several_heaps: bool) -> Iterator[_Change]:
    """Yields the changes that can matter for a stack with glibc."""
    if stack.libc_model != "glibc":
        return
    fixed = "MALLOC_MMAP_THRESHOLD_=131072", "MALLOC_TRIM_THRESHOLD_=131072"
    yield _Change("malloc_trim(0) every {}", trims=True)
    if has_several_heaps:
        yield _Change("MALLOC_ARENA_MAX=1", env=("MALLOC_ARENA_MAX=1",))
    yield _Change(" ".join(fixed), env=fixed)
    if stack.small_model:
        routed = "domains.mem=glibc", "domains.obj=glibc"
        yield _Change("PYTHONMALLOC=malloc", overrides=routed)
        yield _Change("PYTHONMALLOC=malloc with malloc_trim(0) every {}", overrides=routed, trims=True)


def try_remedies(
    trace: Trace,
    chosen: str,
    overrides: Sequence[str],
    env: Sequence[str],
    *,
    has_several_heaps: bool,
    duration_ns: int,
    trim_every_ns: int | None = None,
) -> list[Remedy]:
    """Simulates the trace with each remedy on top of a preset with overrides; returns them by mean."""
    every_ns = _rounded(duration_ns // TRIMS)
    found, given = [], load_config(chosen, overrides, env)
    for change in _changes(given, has_several_heaps):
        if change.trims and (trim_every_ns or not every_ns):
            continue
        try:
            stack = load_config(chosen, [*overrides, *change.overrides], [*env, *change.env])
            if not _takes_effect(change, stack, given, load_config(chosen, change.overrides, change.env)):
                continue
            interval_ns = every_ns if change.trims else trim_every_ns
            result = run(trace, stack, sample_every_ns=NO_SAMPLES_NS, trim_every_ns=interval_ns)
        except (ConfigError, TraceError):
            continue  # the change contradicts a setting of the user
        options = [word for each in change.overrides for word in ("--set", each)]
        options += [word for each in change.env for word in ("--env", each)]
        options += ["--trim-every", _as_option(every_ns)] if change.trims else []
        found.append(
            Remedy(
                change.name.format(format_time(every_ns).replace(".00", "")),
                tuple(options),
                result.mean("resident_bytes"),
                int(result.end.resident_bytes),
                int(result.end.resident_bytes_peak),
            )
        )
    return sorted(found, key=lambda remedy: (remedy.resident_bytes_mean, remedy.resident_bytes_end))


def _takes_effect(change: _Change, stack: StackConfig, given: StackConfig, alone: StackConfig) -> bool:
    """Returns whether `stack` differs from the user's `given` one, and no setting of the user overrides the change.

    `alone`: the preset with the change and without the user's settings.
    """
    if stack == given and not change.trims:
        return False
    names = {setting.split("=")[0] for setting in change.env}
    fields = [field for name, field in _FIELDS.items() if name in names]
    found, wanted = (each.effective_settings()["glibc"] for each in (stack, alone))
    return all(found[field] == wanted[field] for field in fields)


def saving(summary: Summary, remedy: Remedy) -> float:
    """Returns the larger of the shares that a remedy saves of the mean and of the end."""
    return max(1 - after / before if before else 0.0 for before, after in _pairs(summary, remedy))


def is_worthwhile(summary: Summary, remedy: Remedy) -> bool:
    """Returns whether a remedy saves a notable share and amount of the mean, or of the memory at end."""
    return any(
        before - after >= max(WORTHWHILE * before, WORTHWHILE_BYTES) for before, after in _pairs(summary, remedy)
    )


def _pairs(summary: Summary, remedy: Remedy) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns mean and end, each without and with the remedy."""
    return (
        (summary.resident_bytes_mean, remedy.resident_bytes_mean),
        (summary.resident_bytes_end, remedy.resident_bytes_end),
    )


def _rounded(time_ns: int) -> int:
    """Returns a time with one significant digit."""
    scale = 10 ** max(0, len(str(time_ns)) - 1)
    return time_ns // scale * scale


def _as_option(time_ns: int) -> str:
    """Returns a time as an option of a command."""
    unit, size = next(
        each for each in (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)) if time_ns % each[1] == 0
    )
    return f"{time_ns // size}{unit}"
