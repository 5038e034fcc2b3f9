"""Suggestions for unknown names, and safe output of text from other sources.

Names come from traces, files and command lines. Control characters in them could move the terminal's cursor, set its
title or change the direction of text. So commands print only with `say` and `replay.reports.console`.
"""

import difflib
import sys
from collections.abc import Iterable


def nearest(name: object, existing: Iterable[str]) -> str:
    """Returns advice for an unknown name: the nearest known name, or all known names."""
    names = list(existing)
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "none are known here"


def printable(text: str, keep: str = "") -> str:
    """Returns the text with control, format and bidi characters escaped as `\\x1b`, except those in `keep`."""
    return "".join(each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text)


def say(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Prints lines on standard output or standard error. Escapes control characters, except ends of lines."""
    print(printable(text, keep="\n"), end=end, file=sys.stderr if err else sys.stdout, flush=True)


_ASCII = {
    "█": "#", "▓": "%", "▒": "+", "░": ":", "…": "...", "─": "-", "×": "x", "µ": "u", "±": "+-", "≤": "<=", "≥": ">=",
    "→": "->", "▔": "'", "╵": "|", "·": ".",
}  # fmt: skip
_ASCII |= dict(zip("▁▂▃▄▅▆▇", "_..--=+", strict=True))


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler for `codecs`: replaces characters that the encoding of the output does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(each) or ascii(each)[1:-1] for each in lacking), error.end


def by_version(name: str) -> list[tuple[int, str]]:
    """Returns a sort key: `cpython-3.9` before `cpython-3.10`, and versions before other words."""
    words = name.replace("-", ".").split(".")
    return [(int(word), "") if word.isdecimal() else (1 << 30, word) for word in words]
