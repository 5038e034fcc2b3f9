"""Runs an object program: compiles it, and yields the memory it requests, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import DONE, FULL, copied, extend
from replay.objects import ObjectProgram
from replay.objects.code import Code, Constant
from replay.objects.heap import (
    COLLECTOR,
    COUNTS,
    DYING,
    EVENT,
    FINALIZED,
    FREE_LISTS,
    GENERATION,
    GENERATIONS,
    IMMORTAL,
    KEYS_LEAST,
    LONGEST_FREE_LIST,
    OBJECT,
    SMALLEST_CHUNK,
    Heap,
    Kind,
)
from replay.objects.instances import CLASS, SHARED_KEYS
from replay.objects.language import LARGEST, Program
from replay.objects.loop import run_machine
from replay.objects.machine import (
    DEPTH_MAX,
    FRAME,
    FRAMES_KEPT,
    MISTAKES,
    NO_ATTRIBUTE,
    NO_KEY,
    NO_VALUE,
    NONE,
    STATE,
    Machine,
)
from replay.objects.rules import emptied_free_lists, free_list_limits, rules_of, thresholds
from replay.support.errors import WorkloadError

EVENTS_A_BATCH = 1 << 16
_CHUNKS = 48


def new_machine(code: Code, release: tuple[int, ...], program: Program) -> Machine:
    """Returns a machine before the first instruction of `main`."""
    rules = rules_of(release)
    ints = int(rules["small_ints"][0])
    objects, items, constants = _constants(code, ints)
    attributes = np.arange(len(objects), len(objects) + len(code.attributes))
    classes, more = _classes(code, len(objects) + len(attributes), bool(rules["splits_dicts"][0]))
    objects = np.concatenate([objects, _names(code), more])
    objects, generations = _with_generations(objects, program.collector.thresholds or thresholds(release))
    collector = np.zeros(1, COLLECTOR)
    collector["enabled"] = program.collector.enabled
    counts, state = np.zeros(1, COUNTS), np.zeros(1, STATE)
    counts["objects"], counts["items"], counts["blocks"] = len(objects), len(items), 1
    main = code.functions[-1]
    need = int(code.functions["locals"].max()) + 8 * len(code.instructions) + 64
    state["at"], state["function"], state["random"] = main["start"], -1, program.seed & 0xFFFFFFFF
    state["top"], state["need"] = main["locals"], need
    heap = Heap(
        counts,
        rules,
        extend(objects, len(objects) + 1024),
        extend(items, len(items) + 4 * need),
        np.zeros(_CHUNKS, np.int64),
        np.zeros(4 * need, DYING),
        np.zeros(1024, np.int64),
        np.zeros((FREE_LISTS, LONGEST_FREE_LIST), np.int64),
        np.zeros(FREE_LISTS, np.int64),
        free_list_limits(release),
        np.zeros(EVENTS_A_BATCH, EVENT),
        emptied_free_lists(release),
        collector,
        generations,
    )
    return Machine(
        heap,
        state,
        copied(code.instructions),
        _functions(code, release[:2]),
        classes,
        code.slots.copy(),
        np.zeros(4 * need, np.int32),
        np.zeros(DEPTH_MAX + 2, FRAME),
        np.zeros(FRAMES_KEPT, FRAME),
        constants,
        attributes,
        np.arange(1, ints + 1),
    )


def _functions(code: Code, release: tuple[int, ...]) -> np.ndarray:
    """Returns the functions, with the number of variables and values in their generators and frame objects."""
    functions = code.functions.copy()
    if release in code.stack_sizes:
        functions["slots"] = functions["locals"] + code.stack_sizes[release]
    return functions


def _constants(code: Code, ints: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the objects that live forever, the items of tuples among them, and the object of each constant."""
    entries = [(Kind.NONE, 0, 0, 0), *((Kind.INT, value, 0, 0) for value in range(ints))]
    entries += [(Kind.NONE, 0, 0, 0), (Kind.TEXT, 0, 0, 0), (Kind.TEXT, 1, 0, 0), (Kind.BYTES, 1, 0, 0)]
    texts = _texts(code)
    items = [0] * (1 << SMALLEST_CHUNK)

    def number(value: Constant) -> int:
        if value is None or (isinstance(value, int) and value < ints):
            return 1 + ints + NONE if value is None else value + 1
        if isinstance(value, tuple):
            children = [number(each) for each in value]
            entries.append((Kind.TUPLE, len(value), len(items), 0))
            items.extend(children)
        elif isinstance(value, str):
            entries.append((Kind.TEXT, len(value), 0, texts.index(value) + 1 if value in texts else 0))
        else:
            entries.append((Kind.INT, value, 0, 0) if isinstance(value, int) else (Kind.FLOAT, 0, 0, 0))
        return len(entries) - 1

    constants = np.array([number(value) for value in code.constants], np.int64)
    objects = np.zeros(len(entries), OBJECT)
    for field, column in zip(("kind", "length", "first", "capacity"), np.array(entries, np.int64).T, strict=True):
        objects[field] = column
    objects["refs"] = IMMORTAL
    return objects, np.array(items, np.int32), constants


def _with_generations(objects: np.ndarray, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the objects with empty rings after them, and the generations."""
    generations = np.zeros(FINALIZED + 1, GENERATION)
    rings = np.arange(len(objects), len(objects) + len(generations))
    generations["ring"], generations["threshold"][: len(limits)] = rings, limits
    with_rings = extend(objects, len(objects) + len(generations))
    with_rings["next"][rings], with_rings["previous"][rings] = rings, rings
    return with_rings, generations


def _names(code: Code) -> np.ndarray:
    """Returns the objects of the attributes' names, which are keys in dicts of instances only."""
    names = np.zeros(len(code.attributes), OBJECT)
    names["kind"], names["refs"], names["capacity"] = Kind.TEXT, IMMORTAL, -1 - np.arange(len(names))
    return names


def _classes(code: Code, first: int, splits_dicts: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes, and their tables of shared keys if there are, which are the objects from `first` on."""
    classes = np.zeros(len(code.classes), CLASS)
    classes["slots"] = code.classes
    has_dict = np.flatnonzero(code.classes < 0)
    keys = np.zeros(len(has_dict) if splits_dicts else 0, OBJECT)
    keys["kind"], keys["refs"], keys["capacity"], keys["owner"] = Kind.KEYS, 1, KEYS_LEAST, 1
    if splits_dicts:
        classes["keys"][has_dict] = first + np.arange(len(keys))
    else:
        classes["usable"][has_dict] = SHARED_KEYS
    return classes, keys


def _texts(code: Code) -> list[str]:
    """Returns the texts of the program that do not consist of the letter x, as computed texts do."""

    def found(values: Iterable[Constant]) -> Iterator[str]:
        for value in values:
            if isinstance(value, tuple):
                yield from found(value)
            elif isinstance(value, str) and value.strip("x"):
                yield value

    return list(dict.fromkeys(found(code.constants)))


class Batch(NamedTuple):
    """A batch of a program's events, and its state after them."""

    events: np.ndarray
    """Of type EVENT."""
    choices: int
    """Number of random choices so far."""
    generations: np.ndarray
    """Of type GENERATION: the collector's counts and statistics."""


def run_program(program: ObjectProgram, release: tuple[int, ...]) -> Iterator[Batch]:
    """Yields the program's events batch by batch.

    Raises WorkloadError for a mistake of the running program.
    """
    machine = new_machine(program.code, release, program.program)
    while True:
        status = run_machine(machine)
        counts, state = machine.heap.counts[0], machine.state[0]
        generations = machine.heap.generations[:GENERATIONS].copy()
        yield Batch(machine.heap.events[: counts.events].copy(), int(state.choices), generations)
        counts.events = 0
        if status == DONE:
            return
        if status != FULL:
            raise WorkloadError(_sentence(program, machine))
        machine = _with_room(machine)


def _sentence(program: ObjectProgram, machine: Machine) -> str:
    """Returns the message for the mistake that stopped the machine."""
    code, state = program.code, machine.state[0]
    if state.mistake == NO_KEY:
        name = _key_text(code, machine.heap.objects[state.value])
    else:
        names = code.attributes if state.mistake in (NO_ATTRIBUTE, NO_VALUE) else code.names[state.function]
        name = names[state.value] if state.value < len(names) else ""
    what = MISTAKES[state.mistake].format(
        name=name,
        largest=LARGEST,
        value=state.value,
        limit=state.limit,
    )
    return program.sentence(code.places[code.instructions[state.at - 1]["line"]], what)


def _key_text(code: Code, key: np.void) -> str:
    """Returns a key of a dict as Python shows it."""
    if key["kind"] == Kind.INT:
        return str(key["length"])
    return repr(_texts(code)[key["capacity"] - 1]) if key["capacity"] else f"'x' * {key['length']}"


def _with_room(machine: Machine) -> Machine:
    """Returns the machine with twice the room in every table that is nearly full."""
    heap, counts, state = machine.heap, machine.heap.counts[0], machine.state[0]
    need = int(state.need)

    def room(array: np.ndarray, used: int, more: int = 0) -> np.ndarray:
        wanted = used + 2 * need + more
        return extend(array, max(2 * len(array), wanted)) if wanted > len(array) else array

    grown = heap._replace(
        objects=room(heap.objects, counts.objects),
        items=room(heap.items, counts.items, 4 << int(counts.largest)),
        dying=room(heap.dying, counts.dying),
        free_blocks=room(heap.free_blocks, counts.free_blocks),
    )
    return machine._replace(heap=grown, stack=room(machine.stack, state.top))
