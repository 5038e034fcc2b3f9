"""What can go wrong, and who is told.

ReplayError               a sentence for the user; the command line prints it and exits with 2
├── TraceError            a trace that breaks its contract: says the file and the row (from 0)
├── ConfigError           an allocator stack that cannot exist: says the key
├── WorkloadError         a YAML workload that cannot be read: says file, line and key
└── OutputError           a result that cannot be written: says the path
"""


class ReplayError(Exception):
    """A mistake of the user or of the data, put into one sentence."""


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
