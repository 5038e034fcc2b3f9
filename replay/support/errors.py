"""Exceptions, and the messages of the command line.

ReplayError               a sentence for the user; the command line prints it and exits with 2
├── TraceError            a trace that breaks its contract: names the file and the row (from 0)
├── ConfigError           an impossible allocator stack: names the key
├── WorkloadError         a YAML workload that cannot be read: names file, line and key
└── OutputError           a result that cannot be written: names the path

Other exceptions come from the system or from a library. `explain_failure` returns a sentence for those that data or the
machine can cause (exit code 2), and None for bugs of replay (exit code 3).
"""

import errno

from replay.support.names import printable

_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors that only a write can have: disk full, quota exceeded, file too large, read-only file system."""
_READERS = ("pyarrow.lib", "polars.exceptions", "zlib", "lzma", "_lzma", "yaml")
"""Modules whose exceptions are about the data that they read."""


class ReplayError(Exception):
    """A mistake of the user or in the data: one sentence, or several on lines of their own.

    Names of files can contain any character; ends of lines in them are escaped.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(*map(printable, sentences))

    def __str__(self) -> str:
        return "\n".join(self.args)


class TraceError(ReplayError):
    """A trace breaks the contract of `replay.trace`."""

    def __init__(self, reason: str, *, path: object = None, row: int | None = None):
        where = ": ".join(part for part in (str(path) if path else "", f"row {row}" if row is not None else "") if part)
        super().__init__(f"{where}: {reason}" if where else reason)
        self.what, self.path, self.row = reason, path, row


class ConfigError(ReplayError):
    """An allocator stack's configuration is unknown or impossible."""


class WorkloadError(ReplayError):
    """A workload file has a mistake."""


class OutputError(ReplayError):
    """A result cannot be written."""


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
        return "a file is incomplete; copy it or create it again" + (f" ({detail})" if detail else "")
    if isinstance(error, ImportError) and not (error.name or "").startswith("replay"):
        return f"a library cannot be loaded; reinstall it, or free memory: {detail}"
    if isinstance(error, UnicodeError):
        return f"a text has the wrong encoding: {detail}"
    readers = [kind.__module__ for kind in type(error).__mro__ if kind.__module__ in _READERS]
    return f"{readers[0].partition('.')[0].strip('_')} cannot process the data: {detail}" if readers else None


def cannot_be_written(path: object, error: OSError) -> "OutputError":
    """Returns the error for an output that the system refuses."""
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")


def explain_parsing(error: ValueError | RecursionError) -> str:
    """Returns the mistake in a document, without Python's advice about integers with thousands of digits."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("; use sys.")[0]


def _explain_system_error(error: OSError) -> str:
    """Returns a sentence for a system error, with the file if the error has one."""
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    file = printable(str(error.filename)) if error.filename else ""
    if error.errno in _WRITE_ERRORS:
        return f"{file}: cannot be written: {reason}" if file else f"the output cannot be written: {reason}"
    return f"{file}: {reason}" if file else f"a file or device failed: {reason}"
