"""The command `replay`: gathers the subcommands, and turns mistakes into sentences and exit codes.

Exit codes: 0 good, 1 a comparison or gate failed, 2 an error.
"""

import signal
import sys

import typer

from replay.commands.allocators import allocators
from replay.commands.baseline import baseline
from replay.commands.check import check
from replay.commands.generate import generate
from replay.commands.history import history
from replay.commands.import_ import import_trace
from replay.commands.record import SETTINGS as RECORD_SETTINGS
from replay.commands.record import record
from replay.commands.run import run
from replay.commands.schema import schema
from replay.commands.sweep import app as sweep_app
from replay.commands.trace import app as trace_app
from replay.commands.verify import verify
from replay.commands.workloads import workloads
from replay.errors import ReplayError

app = typer.Typer(
    help="Replay allocation traces through an exact model of pymalloc and models of malloc and the kernel.",
    epilog="Start with: replay run web-service",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command, name in (
    (run, "run"),
    (record, "record"),
    (generate, "generate"),
    (verify, "verify"),
    (import_trace, "import"),
    (baseline, "baseline"),
    (check, "check"),
    (history, "history"),
    (allocators, "allocators"),
    (workloads, "workloads"),
    (schema, "schema"),
):
    app.command(name, context_settings=RECORD_SETTINGS if name == "record" else None)(command)
app.add_typer(sweep_app, name="sweep", help="Play traces through many allocator stacks, and say which is best.")
app.add_typer(trace_app, name="trace")


def main() -> None:
    """The entry point: runs the command line; a mistake of the user's becomes one line and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what is half written goes
    try:
        app()
    except ReplayError as error:
        sys.exit(_complain(str(error)))
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        sys.exit(_complain(f"the output cannot be written: {error}"))
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(message: str) -> int:
    print(f"replay: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
