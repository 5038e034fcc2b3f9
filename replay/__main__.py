"""The command `replay`: loads subcommands, and converts exceptions to messages and exit codes.

Exit codes: 0 success; 1 a comparison or gate failed; 2 an error of the user, the data or the machine; 3 a bug of
replay; 130 and 143 interrupted by SIGINT and SIGTERM. `replay record` exits with the exit code of the program.
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
    "compare": (
        "compare:compare",
        "Show how runs of several traces or stacks differ, and where the differences come from.",
    ),
    "pins": ("pins:pins", "Show which live blocks keep memory from being released, and who allocated them."),
    "report": ("report:report", "Write one HTML page about a run: where memory is, who pins it, what to try."),
    "map": ("map:map_", "Draw the heap at one moment: which parts of it are live, free and resident."),
    "export": ("export:export", "Simulate a trace or workload, and write the results for another program."),
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
        "List the bundled workloads: YAML descriptions, object programs and recordings.",
    ),
    "schema": (
        "schema:schema",
        "Print the JSON Schema of a workload, a configuration, a sweep or an object program.",
    ),
    "doctor": ("doctor:doctor", "Check whether replay works on this machine, and say how to get what is missing."),
}
"""By command: module and function (or Typer app), and the first line of the help."""
ERROR, BUG = 2, 3
"""Exit codes."""


_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The exception class for usage errors. Typer imports it from Click or, in later versions, from its own copy."""


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Makes messages of usage errors printable, because they contain parts of the command line.

    Some versions of Typer begin them with the name of a kind of error, which says nothing to users.
    """
    try:
        yield
    except _ClickException as error:
        error.message = printable(error.message).removeprefix("Value error, ")
        raise


class _OnDemand(TyperGroup):
    """Imports only the command that is called. The list of commands uses the lines in COMMANDS."""

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


_NO_VALUE = ""
"""The value of a flag in the help. Typer would print <bool>, as if a flag had a value."""


class _OncePerOption(TyperCommand):
    """Rejects an option that is given twice but has one value. The parser would ignore the first one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            single = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
            if single and given.count(option) > 1:
                name = max(option.opts, key=len)
                raise typer.BadParameter("was given twice; give it once", ctx=ctx, param_hint=name)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = _NO_VALUE
        return option

    def get_usage(self, ctx: Any) -> str:
        """Returns the usage. People leave out the name of the command that a group runs by default."""
        return super().get_usage(ctx).replace(" sweep run ", " sweep ", 1)


def load_command(name: str) -> Any:
    """Imports a command and returns it with its options or subcommands. Joins the lines of each paragraph of its
    help."""
    module_name, _, attribute = COMMANDS[name][0].partition(":")
    module = import_module(f"replay.commands.{module_name}")
    typer_app = getattr(module, attribute)
    if not isinstance(typer_app, typer.Typer):
        function, typer_app = typer_app, typer.Typer(add_completion=False)
        typer_app.command(name, context_settings=getattr(module, "SETTINGS", None))(function)
    for each in typer_app.registered_commands:
        each.cls = _OncePerOption
    command: Any = typer.main.get_command(typer_app)
    command.name = name
    for each in getattr(command, "commands", {"": command}).values():
        paragraphs = (each.help or "").split("\n\n")  # python -OO removes docstrings
        each.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        for option in each.params:
            if getattr(option, "is_flag", False):
                option.metavar = _NO_VALUE
    return command


app = typer.Typer(
    cls=_OnDemand,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # also for all subcommands
)


def _print_version(requested: bool) -> None:
    if requested:
        say(f"replay {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: replay run web-service")
def replay(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Simulate the memory allocators below a Python program: pymalloc, the C library's malloc and Linux."""


def main() -> None:
    """Runs the command line and exits. Converts every exception to a message and an exit code."""
    _prepare_streams()
    try:
        try:
            with stopped_by_signals():
                app()
        finally:
            sys.stdout.flush()  # raises the error of a full disk, if any
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is not an Exception
        sys.exit(_report(error))


def _report(error: BaseException) -> int:
    """Prints the message for an exception and returns the exit code. It is never 1, which means a failed gate in CI."""
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
        except OSError:  # else the interpreter flushes again at exit, and exits with 120
            _discard(stream)
    return status


def _prepare_streams() -> None:
    """Makes stdout and stderr drop output to a closed pipe, and replace characters that their encoding lacks."""
    codecs.register_error(in_ascii.__name__, in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # None if it is closed
        stream.reconfigure(errors=in_ascii.__name__)
        setattr(sys, name, stream)
        for call in ("write", "flush"):
            setattr(stream, call, _ignoring_broken_pipe(getattr(stream, call), stream))


def _ignoring_broken_pipe(call: Callable[..., Any], stream: Any) -> Callable[..., Any]:
    def ignore_broken_pipe(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BrokenPipeError:  # the buffer would be flushed again later
            _discard(stream)
            return len(arguments[0]) if arguments else None

    return ignore_broken_pipe


def _discard(stream: Any) -> None:
    """Redirects a stream to /dev/null, the content of its buffer included."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


if __name__ == "__main__":
    main()
