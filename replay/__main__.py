"""The command `replay`: gathers the subcommands, and turns mistakes into sentences and exit codes.

Exit codes: 0 good, 1 a comparison or gate failed, 2 an error.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from replay import __version__
from replay.support.errors import ReplayError

COMMANDS = {
    "run": ("run:run", "Play a trace or workload through an allocator stack, and say what it cost."),
    "record": (
        "record:record",
        "Record a Python program: every malloc, calloc, realloc and free, its arenas, collections and marked phases.",
    ),
    "generate": ("generate:generate", "Write the trace that a workload describes."),
    "verify": (
        "verify:verify",
        "Play traces through real allocators and through their models, and compare address by address.",
    ),
    "import": (
        "import_:import_trace",
        "Turn a trace of any known format into Parquet, checked and with its blocks numbered.",
    ),
    "baseline": (
        "baseline:baseline",
        "Write down what traces, workloads or programs cost now; `replay check` compares with it.",
    ),
    "check": ("check:check", "Measure now, compare with the baseline, and fail if memory got worse."),
    "history": (
        "history:history",
        "Show how metrics went from commit to commit, and the commits where they stepped.",
    ),
    "sweep": (
        "sweep:app",
        "Simulate traces with many allocator stacks, rank the stacks, and show which settings matter.",
    ),
    "trace": ("trace:app", "Look into a trace, and make others of it."),
    "allocators": (
        "allocators:allocators",
        "List the allocator presets, and the models that a configuration can name.",
    ),
    "workloads": (
        "workloads:workloads",
        "List the bundled workloads, written in YAML or recorded, and what they are like in the wild.",
    ),
    "schema": (
        "schema:schema",
        "Print the JSON Schema of a workload, of an allocator stack's configuration or of a sweep.",
    ),
}
"""By name the module and what it has there, a function or an app, and the first line of its help."""


class _OnDemand(TyperGroup):
    """Imports the one command that is called; for the list of all, a line of each is enough."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load_command(name), rest


def load_command(name: str) -> Any:
    """The command itself, with its options or the commands below it; lines of a docstring are no lines of help."""
    module_name, _, attribute = COMMANDS[name][0].partition(":")
    module = import_module(f"replay.commands.{module_name}")
    found = getattr(module, attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, context_settings=getattr(module, "SETTINGS", None))(found)
        found = alone
    command: Any = typer.main.get_command(found)
    command.name = name
    for each in getattr(command, "commands", {"": command}).values():
        paragraphs = (each.help or "").split("\n\n")  # none under python -OO
        each.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return command


app = typer.Typer(
    cls=_OnDemand,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command below it too
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"replay {__version__}")
        raise typer.Exit


@app.callback(epilog="Start with: replay run web-service")
def replay(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Replay allocation traces through an exact model of pymalloc and models of malloc and the kernel."""


def main() -> None:
    """The entry point: runs the command line; a mistake of the user's becomes one line and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what is half written goes
    _outlive_readers()
    try:
        app()
    except ReplayError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        sys.exit(_complain(f"the output cannot be written: {error}"))
    except KeyboardInterrupt:
        sys.exit(130)


def _outlive_readers() -> None:
    """Whoever reads our output may have seen enough: the rest goes nowhere, and the exit code is what it would be."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # None where it was closed
        setattr(sys, name, stream)
        for call in ("write", "flush"):
            setattr(stream, call, _outliving(getattr(stream, call), stream))


def _outliving(call: Callable[..., Any], stream: Any) -> Callable[..., Any]:
    def outlive(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BrokenPipeError:  # what waits in the buffer is tried again later
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            return len(arguments[0]) if arguments else None

    return outlive


def _complain(message: str) -> int:
    with suppress(OSError):
        print(f"replay: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
