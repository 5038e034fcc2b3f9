"""What to say of a name that is not known, and how to show text that anybody may have written.

Names come from traces, files and command lines. A control character in one could move the terminal's cursor, set its
title or turn the direction of text. So commands print by `say` and by `replay.reports.console` only.
"""

import difflib
import sys
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str:
    """How to go on: the nearest of the names that are known, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "none are known here"


def printable(text: str, keep: str = "") -> str:
    """Returns the text with control, format and bidi characters spelled out as in `\\x1b`, but those of `keep`."""
    return "".join(each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text)


def say(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Prints lines on standard output or standard error; everything but the ends of lines is made printable."""
    print(printable(text, keep="\n"), end=end, file=sys.stderr if err else sys.stdout, flush=True)


_ASCII = {"█": "#", "…": "...", "─": "-", "×": "x", "µ": "u", "±": "+-", "≤": "<=", "≥": ">="}


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler for `codecs`: what stands for characters that an encoding of the output lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(each) or ascii(each)[1:-1] for each in lacking), error.end


def by_version(name: str) -> list[tuple[int, str]]:
    """A key that sorts `cpython-3.9` before `cpython-3.10`, and versions before other words."""
    words = name.replace("-", ".").split(".")
    return [(int(word), "") if word.isdecimal() else (1 << 30, word) for word in words]
