"""What can go wrong, and what the command line says of it.

ReplayError               a sentence for the user; the command line prints it and exits with 2
├── TraceError            a trace that breaks its contract: says the file and the row (from 0)
├── ConfigError           an allocator stack that cannot exist: says the key
├── WorkloadError         a YAML workload that cannot be read: says file, line and key
└── OutputError           a result that cannot be written: says the path

Other exceptions come from the system or from a library. `explain_failure` tells those that data or the machine can
cause, which also exit with 2, from bugs of replay, which exit with 3.
"""

import errno

from replay.support.names import printable

_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the system reports of a write only: disk full, quota exceeded, file too large, read-only file system."""
_READERS = ("pyarrow.lib", "polars.exceptions", "zlib", "lzma", "_lzma", "yaml")
"""Modules whose exceptions are about the data that they read."""


class ReplayError(Exception):
    """A mistake of the user or of the data: a sentence, or several with a line each.

    Names of files in a sentence may contain anything, also the end of a line; it is spelled out.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(*map(printable, sentences))

    def __str__(self) -> str:
        return "\n".join(self.args)


class TraceError(ReplayError):
    """A trace breaks the contract of `replay.trace`."""

    def __init__(self, what: str, *, path: object = None, row: int | None = None):
        where = ": ".join(part for part in (str(path) if path else "", f"row {row}" if row is not None else "") if part)
        super().__init__(f"{where}: {what}" if where else what)
        self.what, self.path, self.row = what, path, row


class ConfigError(ReplayError):
    """An allocator stack's configuration is unknown or impossible."""


class WorkloadError(ReplayError):
    """A workload file does not say what it must."""


class OutputError(ReplayError):
    """A result cannot be put where it should go."""


def explain_failure(error: BaseException) -> str | None:
    """Returns one sentence for an error that data or the machine can cause, and None for a bug of replay."""
    if isinstance(error, ReplayError):
        return str(error)
    if isinstance(error, OSError) and error.errno != errno.ENOMEM:
        return _explain_system_error(error)
    detail = str(error).partition("\n")[0]
    if isinstance(error, (OSError, MemoryError)):
        return "not enough memory" + (f": {detail}" if detail else "")
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    if isinstance(error, EOFError):
        return "a file is cut off; copy or make it again" + (f" ({detail})" if detail else "")
    if isinstance(error, ImportError) and not (error.name or "").startswith("replay"):
        return f"a library cannot be loaded; install it again, or free memory: {detail}"
    if isinstance(error, UnicodeError):
        return f"a text has the wrong encoding: {detail}"
    readers = [kind.__module__ for kind in type(error).__mro__ if kind.__module__ in _READERS]
    return f"{readers[0].partition('.')[0].strip('_')} cannot process the data: {detail}" if readers else None


def explain_parsing(error: ValueError | RecursionError) -> str:
    """Returns what is wrong with a document; Python's advice on integers of thousands of digits is left out."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("; use sys.")[0]


def _explain_system_error(error: OSError) -> str:
    """Names the file where the system does; an error of writing alone says so."""
    what = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    file = printable(str(error.filename)) if error.filename else ""
    if error.errno in _WRITE_ERRORS:
        return f"{file}: cannot be written: {what}" if file else f"the output cannot be written: {what}"
    return f"{file}: {what}" if file else f"a file or device failed: {what}"
