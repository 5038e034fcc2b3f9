"""What to say of a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str:
    """How to go on: the nearest of the names that are known, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "none are known here"


def by_version(name: str) -> list[tuple[int, str]]:
    """A key that sorts `cpython-3.9` before `cpython-3.10`, and versions before other words."""
    words = name.replace("-", ".").split(".")
    return [(int(word), "") if word.isdecimal() else (1 << 30, word) for word in words]
