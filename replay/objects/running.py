"""Runs an object program: compiles it, and yields the memory it requests, batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import DONE, FULL, copied, extend
from replay.objects import ObjectProgram
from replay.objects.constants import Constant, FunctionValue
from replay.objects.exception_classes import class_names
from replay.objects.heap import (
    CALLBACKS,
    COLLECTOR,
    COUNTS,
    DYING,
    EVENT,
    FINALIZES,
    GENERATION,
    GENERATIONS,
    IMMORTAL,
    KEYS_LEAST,
    OBJECT,
    REFERABLE,
    SMALLEST_CHUNK,
    Heap,
)
from replay.objects.instances import CLASS, SHARED_KEYS
from replay.objects.instructions import Code
from replay.objects.kinds import FREE_LISTS, LONGEST_FREE_LIST, Kind
from replay.objects.language import LARGEST, Program
from replay.objects.layout import arranged
from replay.objects.limits import check_memory
from replay.objects.loop import run_machine
from replay.objects.machine import (
    CRITICAL_LENGTH,
    DEPTH_MAX,
    FRAME,
    FRAMES_KEPT,
    IS_METHOD,
    MISTAKES,
    NESTED,
    NESTED_MAX,
    NO_ATTRIBUTE,
    NO_KEY,
    NO_VALUE,
    NONE,
    STATE,
    UNCAUGHT,
    UNKNOWN_PLACE,
    Machine,
)
from replay.objects.offsets import far_instructions
from replay.objects.rules import SORTED_ATTRIBUTES, default_thresholds, emptied_free_lists, free_list_limits, rules_of
from replay.support.errors import WorkloadError
from replay.trace.metadata import ThreadTimes

EVENTS_A_BATCH = 1 << 16
_CHUNKS = 48


def new_machine(code: Code, release: tuple[int, ...], program: Program) -> Machine:
    """Returns a machine before the first instruction of `main`."""
    code, rules = arranged(code, release), rules_of(release)
    ints = int(rules["small_ints"][0])
    objects, items, constants = _constants(code, ints)
    attributes = np.arange(len(objects), len(objects) + len(code.attributes))
    classes, more = _classes(code, len(objects) + len(attributes), bool(rules["splits_dicts"][0]))
    if release >= SORTED_ATTRIBUTES:
        _fill(classes, code)
    methods = len(objects) + len(attributes) + len(more)
    _set_traits(classes, code, program, methods)
    objects = np.concatenate([objects, _names(code), more, _function_objects(code), _ended_frame()])
    ended_frame = len(objects) - 1
    objects, generations = _with_generations(objects, program.collector.thresholds or default_thresholds(release))
    collector = np.zeros(1, COLLECTOR)
    collector["enabled"] = program.collector.enabled
    counts, state = np.zeros(1, COUNTS), np.zeros(1, STATE)
    counts["objects"], counts["items"], counts["blocks"] = len(objects), len(items), 1
    counts["steps_most"] = program.limits.steps
    main = code.functions[-1]
    need = int(code.functions["locals"].max()) + 8 * len(code.instructions) + 64
    state["at"], state["function"], state["random"] = main["start"], -1, program.seed & 0xFFFFFFFF
    state["top"], state["need"], state["ended_frame"] = main["locals"], need, ended_frame
    state["end_call"], state["calls_nested"] = code.end_call, code.end_call > 0 or code.runs_when_closed
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
        _functions(code, release),
        classes,
        _slots(code, release),
        np.where(code.methods < 0, 0, methods + code.methods),
        np.zeros(4 * need, np.int32),
        np.zeros(DEPTH_MAX + 2, FRAME),
        np.zeros(FRAMES_KEPT, FRAME),
        constants,
        attributes,
        np.arange(1, ints + 1),
        code.regions,
        code.region_of,
        far_instructions(code, release),
        np.zeros(NESTED_MAX, NESTED),
    )


def _functions(code: Code, release: tuple[int, ...]) -> np.ndarray:
    """Returns the functions, with the sizes of their generators and frame objects from 3.11 on."""
    functions = code.functions.copy()
    if found := code.function_slots.get((release[0], release[1])):
        base = 136 if release[:2] <= (3, 12) else 152 if release[:2] == (3, 13) else 168
        functions["slots"] = np.array(found)
        functions["object_bytes"] = base + 8 * functions["slots"]
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
        elif isinstance(value, FunctionValue):
            entries.append((Kind.FUNCTION, value.number, 0, 0))
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
    generations = np.zeros(CALLBACKS + 1, GENERATION)
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


def _function_objects(code: Code) -> np.ndarray:
    """Returns an object for each function of the program, which lives forever."""
    functions = np.zeros(len(code.functions), OBJECT)
    functions["kind"], functions["refs"], functions["length"] = Kind.FUNCTION, IMMORTAL, np.arange(len(functions))
    return functions


def _ended_frame() -> np.ndarray:
    """Returns the object that stands for the frame of a call that ends."""
    frame = np.zeros(1, OBJECT)
    frame["kind"], frame["refs"] = Kind.ENDED_FRAME, IMMORTAL
    return frame


def _slots(code: Code, release: tuple[int, ...]) -> np.ndarray:
    """Returns the place of each attribute in each class before its first instance."""
    slots = code.slots.copy()
    if release >= SORTED_ATTRIBUTES:
        for row, own in zip(slots, code.own, strict=True):
            row[own[:SHARED_KEYS]] = np.arange(len(own[:SHARED_KEYS]))
    return slots


def _fill(classes: np.ndarray, code: Code) -> None:
    """Gives classes the attributes that their methods assign to `self`."""
    counts = np.minimum([len(own) for own in code.own], SHARED_KEYS).astype(np.int64)
    classes["entries"] += counts
    classes["usable"] -= counts


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


def _set_traits(classes: np.ndarray, code: Code, program: Program, functions: int) -> None:
    """Sets which classes have weak references and finalizers. `functions`: the first object of a function."""
    forms, finalizers = program.classes.values(), np.array(code.finalizers, np.int64)
    classes["traits"] = [REFERABLE if kind.weakref or kind.slots is None else 0 for kind in forms]
    classes["traits"][finalizers >= 0] |= FINALIZES
    classes["finalizer"] = np.where(finalizers < 0, 0, functions + finalizers)


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
    threads: np.ndarray | None = None
    """The thread of each event; None for a program without threads."""
    times_ns: np.ndarray | None = None
    """The time of each event, likewise."""
    thread_times: tuple[ThreadTimes, ...] = ()
    """With the last batch: how each thread spent its time, likewise."""


def run_program(program: ObjectProgram, release: tuple[int, ...]) -> Iterator[Batch]:
    """Yields the program's events batch by batch.

    Raises WorkloadError for a mistake of the running program.
    """
    machine = new_machine(program.code, release, program.program)
    if program.code.has_threads:
        yield from _run_threads(program, release, machine)
        return
    while True:
        status = run_machine(machine)
        counts, state = machine.heap.counts[0], machine.state[0]
        generations = machine.heap.generations[:GENERATIONS].copy()
        yield Batch(machine.heap.events[: counts.events].copy(), int(state.choices), generations)
        counts.events = 0
        if status == DONE:
            return
        if status != FULL:
            raise WorkloadError(_sentence(program, machine, release))
        machine = _with_room(machine)
        check_memory(program, machine)


def _run_threads(program: ObjectProgram, release: tuple[int, ...], machine: Machine) -> Iterator[Batch]:
    """Yields the events of a program with threads."""
    from replay.objects.threads import ThreadedRun  # needs SimPy, and another kernel

    run = ThreadedRun(program, release, machine, _with_room, _sentence)
    for part in run.parts():
        generations = run.heap.generations[:GENERATIONS].copy()
        times = tuple(run.times()) if part.is_last else ()
        yield Batch(part.events, run.choices, generations, part.threads, part.times_ns, times)


def _sentence(program: ObjectProgram, machine: Machine, release: tuple[int, ...]) -> str:
    """Returns the message for the mistake that stopped the machine."""
    code, state = arranged(program.code, release), machine.state[0]
    if state.mistake == NO_KEY:
        name = _key_text(code, machine.heap.objects[state.value])
    elif state.mistake == UNCAUGHT:
        name = class_names(program.program)[state.value]
    elif state.mistake in (CRITICAL_LENGTH, UNKNOWN_PLACE):
        name = ".".join(map(str, release[:2]))
    else:
        names = code.attributes if state.mistake in (NO_ATTRIBUTE, NO_VALUE, IS_METHOD) else code.names[state.function]
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
