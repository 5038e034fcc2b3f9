"""glibc's settings in the spelling of the environment, as overrides of a configuration."""

from collections.abc import Iterator, Sequence

from replay.errors import ConfigError
from replay.naming import nearest

VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "mmap_threshold",
    "MALLOC_TRIM_THRESHOLD_": "trim_threshold",
    "MALLOC_TOP_PAD_": "top_pad",
    "MALLOC_MMAP_MAX_": "mmap_max",
    "MALLOC_ARENA_MAX": "arena_max",
    "MALLOC_ARENA_TEST": "arena_test",
}
"""Variable -> key of the model `glibc`."""
TUNABLES = {
    f"glibc.malloc.{key}": key
    for key in (*VARIABLES.values(), "mxfast", "tcache_count", "tcache_max", "tcache_unsorted_limit", "hugetlb")
}
"""Name in GLIBC_TUNABLES -> key."""
_TUNABLES_VARIABLE = "GLIBC_TUNABLES"
_FROM_ONE = ("arena_max", "arena_test")
"""glibc ignores a 0 there."""


def overrides_of(assignments: Sequence[str]) -> list[str]:
    """Overrides like `libc.top_pad=0` for assignments like `MALLOC_TOP_PAD_=0`.

    glibc ignores in silence what it does not know; here it is an error.
    """
    return [f"libc.{key}={value}" for assignment in assignments for key, value in _settings(assignment)]


def _settings(assignment: str) -> Iterator[tuple[str, str]]:
    variable, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--env {assignment}: write it like MALLOC_TOP_PAD_=0")
    if variable == "PYTHONMALLOC":
        raise ConfigError(f"--env {assignment}: choose a preset such as cpython-3.12-malloc with -a instead")
    if variable != _TUNABLES_VARIABLE:
        key = _lookup(VARIABLES, variable, assignment)
        yield key, _number(text, assignment, key)
        return
    for tunable in filter(None, text.split(":")):
        name, _, value = tunable.partition("=")
        key = _lookup(TUNABLES, name, assignment)
        yield key, _number(value, assignment, key)


def _lookup(known: dict[str, str], name: str, assignment: str) -> str:
    if name not in known:
        names = [*known, _TUNABLES_VARIABLE] if known is VARIABLES else list(known)
        raise ConfigError(f"--env {assignment}: {name} is not modelled; {nearest(name, names)}")
    return known[name]


def _number(text: str, assignment: str, key: str) -> str:
    """As strtoul reads it: decimal, 0x…, or octal after a 0."""
    try:
        value = int(text, 8 if text.startswith("0") and text.isdecimal() else 0)
    except ValueError:
        value = -1
    least = 1 if key in _FROM_ONE else 0
    if value < least:
        raise ConfigError(f"--env {assignment}: {text!r} is no whole number of at least {least}")
    return str(value)
