"""The limits that stop a program which does not end: memory for its objects, steps and threads.

They are checked where they cost nothing: when a table of the machine grows, at jumps back, and when a thread starts.
"""

from replay.objects import ObjectProgram
from replay.objects.machine import Machine
from replay.support.errors import WorkloadError
from replay.support.units import format_count, format_size

_ENDLESS = "if the program ends, allow more with `limits: {{{key}: …}}`"


def check_memory(program: ObjectProgram, machine: Machine) -> None:
    """Raises WorkloadError if the tables of a machine exceed the limit of the program."""
    most, heap, counts = program.program.limits.memory, machine.heap, machine.heap.counts[0]
    tables = heap.objects, heap.items, heap.dying, heap.free_blocks, machine.stack
    if sum(table.nbytes for table in tables) <= most:
        return
    objects, entries = format_count(int(counts.objects), "object"), int(counts.items)
    grown = f"{objects} and {entries:,} entries for their references need more than {format_size(most)}"
    raise _refusal(program, machine, f"{grown} here, the limit of the simulation's memory", "memory")


def check_threads(program: ObjectProgram, machine: Machine, threads: int) -> None:
    """Raises WorkloadError if a program starts more threads than its limit."""
    most = program.program.limits.threads
    if threads > most:
        raise _refusal(program, machine, f"more than {format_count(most, 'thread')} are started", "threads")


def _refusal(program: ObjectProgram, machine: Machine, what: str, key: str) -> WorkloadError:
    """Returns an error at the statement that runs."""
    place = program.code.places[machine.instructions[machine.state[0].at - 1]["line"]]
    return WorkloadError(program.sentence(place, f"{what}; {_ENDLESS.format(key=key)}"))
