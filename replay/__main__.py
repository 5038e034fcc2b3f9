"""The command `replay`: gathers the subcommands, and turns mistakes into sentences and exit codes.

Exit codes: 0 success; 1 a comparison or gate failed; 2 an error of the user, the data or the machine; 3 a bug of
replay; 130 and 143 an interruption by SIGINT and SIGTERM. `replay record` passes on the exit code of the program.
"""

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from replay import __version__
from replay.commands.stopping import stopped_by_signals
from replay.support.errors import ReplayError, explain_failure
from replay.support.names import in_ascii, printable, say

COMMANDS = {
    "run": ("run:run", "Simulate a trace or workload with an allocator stack, and report its memory use."),
    "record": (
        "record:record",
        "Record the allocations, arenas, garbage collections and phases of a Python program.",
    ),
    "generate": ("generate:generate", "Write the trace of a workload to a Parquet file."),
    "verify": (
        "verify:verify",
        "Run traces through real allocators and through their models, and compare every address.",
    ),
    "import": (
        "import_:import_trace",
        "Convert a trace in any supported format to Parquet.",
    ),
    "baseline": (
        "baseline:baseline",
        "Measure traces, workloads or programs, and store the results for `replay check`.",
    ),
    "check": ("check:check", "Measure again, compare with the baseline, and fail if memory use got worse."),
    "history": (
        "history:history",
        "Show metrics over commits, and the commits at which their level changed.",
    ),
    "sweep": (
        "sweep:app",
        "Simulate traces with many allocator stacks, rank the stacks, and show which settings matter.",
    ),
    "trace": ("trace:app", "Inspect and edit traces."),
    "allocators": (
        "allocators:allocators",
        "List the allocator presets and models.",
    ),
    "workloads": (
        "workloads:workloads",
        "List the bundled workloads: YAML descriptions and recordings.",
    ),
    "schema": (
        "schema:schema",
        "Print the JSON Schema of a workload, a configuration or a sweep.",
    ),
}
"""By command: module and function (or Typer app), and the first line of the help."""
ERROR, BUG = 2, 3
"""Exit codes."""


_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Which Typer takes from Click or, in later versions, from a copy of its own."""


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Typer shows what is wrong with a command line, and with it words of that line."""
    try:
        yield
    except _ClickException as error:
        error.message = printable(error.message)
        raise


class _OnDemand(TyperGroup):
    """Imports the one command that is called; for the list of all, a line of each is enough."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load_command(name), rest

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        with _printable_usage_errors():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _printable_usage_errors():
                return super().invoke(ctx)
        except (EOFError, BrokenPipeError) as error:  # Typer would exit with 1
            raise ReplayError(str(explain_failure(error))) from error


class _OncePerOption(TyperCommand):
    """Refuses an option that is given twice but has one value, of which the parser would drop the first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            single = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
            if single and given.count(option) > 1:
                name = max(option.opts, key=len)
                raise typer.BadParameter("was given twice; give it once", ctx=ctx, param_hint=name)
        return super().parse_args(ctx, args)


def load_command(name: str) -> Any:
    """The command itself, with its options or the commands below it; lines of a docstring are no lines of help."""
    module_name, _, attribute = COMMANDS[name][0].partition(":")
    module = import_module(f"replay.commands.{module_name}")
    found = getattr(module, attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, context_settings=getattr(module, "SETTINGS", None))(found)
        found = alone
    for each in found.registered_commands:
        each.cls = _OncePerOption
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
        say(f"replay {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: replay run web-service")
def replay(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Simulate the memory allocators below a Python program: pymalloc, the C library's malloc and Linux."""


def main() -> None:
    """Runs the command line and exits; every exception ends in a message and an exit code here."""
    _prepare_streams()
    try:
        try:
            with stopped_by_signals():
                app()
        finally:
            sys.stdout.flush()  # a full disk may show itself only now
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException as error:  # a library written in Rust may panic, which is no Exception
        sys.exit(_report(error))


def _report(error: BaseException) -> int:
    """Prints what is to be said of an exception, and returns the exit code, never 1: that means worse memory to CI."""
    message, status = explain_failure(error), ERROR
    if message is None:
        import traceback

        with suppress(OSError):
            traceback.print_exception(error)
        message, status = "this is a bug of replay: please report it with the lines above", BUG
    with suppress(OSError):
        say(f"replay: {message}", err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # else the interpreter tries again as it ends, and exits with 120
            _discard(stream)
    return status


def _prepare_streams() -> None:
    """Output that has no reader is dropped; characters that the stream's encoding lacks are replaced, not refused."""
    codecs.register_error(in_ascii.__name__, in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # None where it was closed
        stream.reconfigure(errors=in_ascii.__name__)
        setattr(sys, name, stream)
        for call in ("write", "flush"):
            setattr(stream, call, _outliving(getattr(stream, call), stream))


def _outliving(call: Callable[..., Any], stream: Any) -> Callable[..., Any]:
    def outlive(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BrokenPipeError:  # what waits in the buffer is tried again later
            _discard(stream)
            return len(arguments[0]) if arguments else None

    return outlive


def _discard(stream: Any) -> None:
    """Sends to nowhere what the stream's buffer holds and all that follows."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
