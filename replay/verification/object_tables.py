"""Measures sizes, growth and free lists of objects in a real interpreter: what the rules of `replay.objects` rely on.

Each expression runs in the harness that records the interpreter's requests, after so many objects were made that free
lists are empty. `benchmarks/object_tables.py` prints the tables.
"""

import json

import numpy as np

from replay.trace import Op
from replay.verification.object_oracles import Region, record_objects
from replay.verification.oracles import Oracle

SIZES = {
    "float": "n * 1.5",
    "int below 2^30": "n + 1000000",
    "int below 2^60": "n + (1 << 40)",
    "int below 2^90": "n + (1 << 70)",
    "str, 10 ASCII characters": "chr(97 + n % 9) * 10",
    "str, 10 characters up to U+00FF": "chr(225 + n % 9) * 10",
    "str, 10 characters up to U+FFFF": "chr(1025 + n % 9) * 10",
    "str, 10 characters above": "chr(128513 + n % 9) * 10",
    "bytes, 10": "bytes((n % 9,)) * 10",
    "tuple of 3": "(n, n, n)",
    "list of 3": "[n, n, n]",
    "dict of 1 int": "{n: n}",
    "set of 1": "{n}",
    "instance with a dict, 1 attribute": "Plain(n)",
    "instance with 2 slots": "Slots()",
    "function": "lambda: 0",
    "bound method": "plain.method",
    "generator of one variable": "generator(n)",
    "ValueError()": "ValueError()",
    "range": "range(n, n + 5)",
}
"""Expressions, by what they make."""
GROWTH = {
    "list.append": ("x = []", "x.append(n)"),
    "dict[n] = n": ("x = {}", "x[n] = n"),
    "set.add": ("x = set()", "x.add(n)"),
}
"""A statement that makes a container, and one that adds an element."""
KEPT = {
    "float": "n * 1.5",
    "tuple of 1": "(n,)",
    "tuple of 3": "(n, n, n)",
    "tuple of 20": "(n,) * 20",
    "list": "[]",
    "dict": "{}",
    "bound method": "plain.method",
    "range": "range(n, n + 5)",
    "int": "n + 1000000",
}
"""Objects whose free lists are measured, by their types."""
ADDED = 100
_MADE = 3000
_SETUP = """
from allocation_log import start, stop
import gc
gc.disable()
class Plain:
    def __init__(self, value): self.value = value
    def method(self): pass
class Slots:
    __slots__ = ("a", "b")
def generator(n):
    yield n
plain = Plain(0)
def make(expression):
    space = {"Plain": Plain, "Slots": Slots, "generator": generator, "plain": plain, "start": start, "stop": stop}
    exec(compile(expression, "probe", "exec"), space)
    return space["probe"]
"""
_SIZE = """
def probe(times):
    n = 300
    for _ in times[:16]: ({expression})
    held = [({expression}) for _ in times]
    start(); x = ({expression}); stop()
"""
_GROWTH = """
def probe(times):
    for last in (False, True):
        {begin}
        for n in range(300, {end}):
            if last: start()
            {add}
            if last: stop()
"""
_KEPT = """
def probe(times):
    n = 300
    made = [None] * len(times)
    for at in times: made[at] = ({expression})
    for at in times: made[at] = None
    start()
    for at in times: made[at] = ({expression})
    stop()
"""


def measure(oracle: Oracle) -> dict[str, dict[str, str]]:
    """Returns the tables of an interpreter: by name of the table, values by what was measured."""
    sizes = _record(oracle, [_SIZE.format(expression=each) for each in SIZES.values()])
    kept = _record(oracle, [_KEPT.format(expression=each) for each in (*KEPT.values(), "None")])
    growth = {}
    for name, (begin, add) in GROWTH.items():
        regions = _record(oracle, [_GROWTH.format(begin=begin, add=add, end=300 + ADDED)])
        requests = [(number, _requested(region)) for number, region in enumerate(regions, 1)]
        growth[name] = ", ".join(f"{number}: {max(found)}" for number, found in requests if found)
    return {
        "sizes": {name: _sum(_requested(region)) for name, region in zip(SIZES, sizes, strict=True)},
        "growth": growth,
        "kept": {name: str(_kept(region, kept[-1])) for name, region in zip(KEPT, kept, strict=False)},
    }


def _record(oracle: Oracle, functions: list[str]) -> list[Region]:
    """Runs each probe, and returns its regions."""
    calls = [f"make({json.dumps(text)})(list(range({_MADE})))" for text in functions]
    return record_objects(oracle, "\n".join([_SETUP, *calls]))


def _requested(region: Region) -> list[int]:
    events = region.events
    is_request = np.isin(events["op"], (Op.MALLOC, Op.CALLOC, Op.REALLOC))
    sizes: list[int] = events["size"][is_request].tolist()
    return sizes


def _kept(region: Region, without: Region) -> int:
    """Returns how many objects needed no request: a free list had them. `without`: the same loop without objects."""
    sizes, counts = np.unique(_requested(region), return_counts=True)
    most = int(counts.argmax()) if len(sizes) else 0
    requests = int(counts[most]) - _requested(without).count(int(sizes[most])) if len(sizes) else 0
    return _MADE - requests


def _sum(sizes: list[int]) -> str:
    return " + ".join(map(str, sizes)) or "0"
