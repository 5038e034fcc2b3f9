"""Converts environment variables of glibc to overrides of a configuration.

Numbers are parsed like in `_dl_strtoul` of the dynamic loader: blanks, a sign, then decimal, 0x… or octal after a 0; -1
is 2^64 - 1. If a tunable is set twice, the last value counts; tunables override variables. Values that glibc would
ignore silently are errors here, and so are values that older versions parse in part, like `64k`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from replay.support.errors import ConfigError
from replay.support.names import nearest

MODEL = "glibc"
"""The model that these variables configure."""
VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "mmap_threshold",
    "MALLOC_TRIM_THRESHOLD_": "trim_threshold",
    "MALLOC_TOP_PAD_": "top_pad",
    "MALLOC_MMAP_MAX_": "mmap_max",
    "MALLOC_ARENA_MAX": "arena_max",
    "MALLOC_ARENA_TEST": "arena_test",
    "MALLOC_PERTURB_": "perturb",
    "MALLOC_CHECK_": "check",
}
"""Variable -> key of the model."""
TUNABLES = {
    f"glibc.malloc.{key}": key
    for key in (*VARIABLES.values(), "mxfast", "tcache_count", "tcache_max", "tcache_unsorted_limit", "hugetlb")
}
"""Name in GLIBC_TUNABLES -> key."""
_TUNABLES_VARIABLE = "GLIBC_TUNABLES"
_LEAST = {"arena_max": 1, "arena_test": 1}
_MAXIMA = {"mmap_max": 2**31 - 1, "perturb": 255, "check": 3}
"""Largest accepted values, if smaller than 2^64 - 1 (`ld.so --list-tunables`). glibc ignores larger ones."""
_ENDLESS = {
    **dict.fromkeys(("mmap_threshold", "trim_threshold", "tcache_unsorted_limit"), 2**63 - 1),
    **dict.fromkeys(("arena_max", "arena_test"), 2**31 - 1),
}
"""Settings for which -1 (2^64 - 1) means never or unlimited, and an equivalent value."""
_NUMBER = re.compile(r"[ \t]*(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))")


def overrides_of(assignments: Sequence[str]) -> list[str]:
    """Returns overrides like `glibc.top_pad=0` for assignments like `MALLOC_TOP_PAD_=0`. The last of a variable
    counts."""
    last = {assignment.partition("=")[0]: assignment for assignment in assignments}
    ordered = sorted(last.values(), key=lambda assignment: assignment.startswith(f"{_TUNABLES_VARIABLE}="))
    settings = dict(setting for assignment in ordered for setting in _settings(assignment))
    return [f"{MODEL}.{key}={value}" for key, value in settings.items()]


def settings_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the assignments in an environment that are settings of malloc."""
    tunables = ":".join(
        each for each in environment.get(_TUNABLES_VARIABLE, "").split(":") if each.startswith("glibc.malloc.")
    )
    own = [f"{name}={environment[name]}" for name in VARIABLES if name in environment]
    return (*own, f"{_TUNABLES_VARIABLE}={tunables}") if tunables else tuple(own)


def notes_of(assignments: Sequence[str]) -> list[str]:
    """Returns notes about assignments that are valid but have no effect."""
    empty = f"{_TUNABLES_VARIABLE}="
    return [f"--env {empty}: is empty, so glibc sets no tunable"] if empty in assignments else []


def _settings(assignment: str) -> Iterator[tuple[str, int]]:
    variable, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--env {assignment}: write it like MALLOC_TOP_PAD_=0")
    if variable == "PYTHONMALLOC":
        raise ConfigError(
            f"--env {assignment}: PYTHONMALLOC chooses an allocator; use -a cpython-3.12-malloc, or in a sweep"
            " -a cpython-3.12,cpython-3.12-malloc, with the version of your program"
        )
    if variable != _TUNABLES_VARIABLE:
        key = _lookup(VARIABLES, variable, assignment)
        yield key, _number(text, assignment, key)
        return
    if text.endswith(":"):
        raise ConfigError(f"--env {assignment}: ends with a colon; glibc 2.39 and later then ignore the whole variable")
    for tunable in filter(None, text.split(":")):
        name, _, value = tunable.partition("=")
        key = _lookup(TUNABLES, name, assignment)
        yield key, _number(value, assignment, key)


def _lookup(known: dict[str, str], name: str, assignment: str) -> str:
    if name not in known:
        names = [*known, _TUNABLES_VARIABLE] if known is VARIABLES else list(known)
        raise ConfigError(f"--env {assignment}: {name} is not modelled; {nearest(name, names)}")
    return known[name]


def _number(text: str, assignment: str, key: str) -> int:
    """Returns the number that glibc reads from the text; raises ConfigError if it would ignore the text."""
    minimum, maximum = _LEAST.get(key, 0), _MAXIMA.get(key, 2**64 - 1)
    match = _NUMBER.fullmatch(text)
    value = -1
    if match:
        value = int(
            match["hex"] or match["octal"] or match["decimal"], 16 if match["hex"] else 8 if match["octal"] else 10
        )
        if match["sign"] == "-" and value <= maximum:
            value = -value % 2**64 if key in _ENDLESS else -value
    if not minimum <= value <= maximum:
        bounds = f"from {minimum} to {maximum}" if key in _MAXIMA else f"of at least {minimum}"
        raise ConfigError(f"--env {assignment}: {text!r} is not an integer {bounds}")
    return min(value, _ENDLESS.get(key, value))
