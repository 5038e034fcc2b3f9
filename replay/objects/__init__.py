"""Python objects: programs that create, reference and drop objects, and the memory that CPython requests for them.

    language    the schema of an object program in YAML
    attributes  the attributes and methods of classes
    scopes      which variables are local, and which are in cells
    instructions
                what the machine runs, and the code of a program
    code        compiles a program: `statements`, `expressions` and `raising` emit instructions, and find what is
                unknown or unbound. `constants`, `stack_sizes` and `code_units` are what CPython's compiler computes;
                `combinations` says which features cannot be combined
    exception_classes
                the classes of exceptions
    handlers    what the compiler and the machine know of `try`; `layout` and `offsets` say where CPython has its code
    heap        objects, reference counts, free lists
    collector   the cyclic collector
    machine     the state of a running program; its instructions are in `values`, `containers`,
                `dicts`, `sets`, `instances`, `functions`, `calls` and `generators`; `closing` ends generators, and
                `running_generators` shows the collector those that run
    exceptions  raise and handle exceptions; `unwinding` finds their handlers, and `frame_objects` keeps variables
    loop        runs the instructions, and starts collections; up to 3.11, `next_allocation` says when
    threads     runs the threads of a program in turns, with the `gil`; their instructions are in
                `thread_instructions`, `waiting` and `queues`
    rules       what differs between releases of CPython
    limits      stops programs that do not end
    running     the events of a program, batch by batch
    tracing     the same as a trace
    twin        the same program in plain Python

`docs/objects.md` explains the language and says what is simulated. `load_objects` reads a program.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from replay.support.errors import WorkloadError
from replay.support.yaml_documents import Document, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay.objects.instructions import Code
    from replay.objects.language import Program
    from replay.support.yaml_documents import Location


class ObjectProgram(NamedTuple):
    """An object program: as written, and its code. `sentence`: the message for a mistake at a place in its file."""

    name: str
    program: "Program"
    code: "Code"
    sentence: "Callable[[Location, str], str]"


EXAMPLE = "kind: objects"
"""A valid line of an object program, for error messages."""


def load_objects(path: Path) -> ObjectProgram:
    """Returns the object program in a file. Errors name file, line and key."""
    return parse_objects(Document(path, WorkloadError, EXAMPLE))


def parse_objects(document: Document) -> ObjectProgram:
    """Returns the object program of a document."""
    from replay.objects.code import compile_program
    from replay.objects.language import Program

    if document.data.get("kind") != "objects":
        raise document.refusal([Problem((), "is not an object program; those have `kind: objects`")])
    program = document.parse(Program)
    code, problems = compile_program(program)
    if code is None:
        raise document.refusal(problems)
    return ObjectProgram(document.path.stem, program, code, document.sentence)
