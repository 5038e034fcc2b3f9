"""Allocates blocks, keeps most of them, and writes the call site of each live block at the end, from tracemalloc.

tracemalloc is on from the start. It would take a block that comes out of a free list for a new one: that is turned off.
"""

import _tracemalloc
import ast
import asyncio
import collections
import copy
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import gc
import inspect
import itertools
import json
import pathlib
import re
import sys
import threading
import typing

BEGIN, END = 7_777_001, 7_777_003
"""Size of the blocks that mark, in the recording, the moment of the count."""
MODULES = (
    "argparse calendar configparser difflib dis email.mime.text html.parser http.client logging.config pickle plistlib "
    "pydoc statistics tarfile tempfile unittest.mock urllib.request uuid xml.dom.minidom zipfile"
)
kept = []


def load():
    kept.extend(__import__(name) for name in MODULES.split())


def texts_and_trees():
    for module in (ast, inspect, typing):
        source = inspect.getsource(module)
        kept.append(ast.parse(source))
        kept.append(compile(source, module.__name__, "exec"))
        words = re.findall(r"\w+", source)
        kept.append([words, collections.Counter(words), [(line, line.upper().split()) for line in source.splitlines()]])


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5
    name: str = dataclasses.field(default_factory=lambda: "n" * 40)


class Node:
    def __init__(self, value, *rest, **named):
        self.value, self.rest, self.named = value, rest, named
        self.text = f"{value!r:>40} of {rest}"


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = [a]
        self.b = {a: a}


class Lazy:
    def __getattr__(self, name):
        self.__dict__[name] = value = [name] * 7
        return value

    def __eq__(self, other):
        kept.append((self, [other]))
        return False

    def __hash__(self):
        return 1


def pairs(limit):
    for number in range(limit):
        yield (number + 100_000, str(number))


def closure(number):
    cell = [number]

    def inner():
        return cell

    return inner


def objects():
    kept.append([Point(number, number * 1.5) for number in range(2000)])
    kept.append([Node(number, number, number + 1000, k=number) for number in range(2000)])
    kept.append([Slotted(number + 10**6) for number in range(1000)])
    kept.append([[*range(number + 300, number + 320)] for number in range(200)])
    kept.append([(*"abc", number + 9999) for number in range(500)])
    kept.append([{**{"a": 1}, "b": number + 5555} for number in range(500)])
    kept.append([lambda: kept for _ in range(1000)])
    kept.append([closure(number) for number in range(1000)])
    kept.append([type(f"T{number}", (), {"__slots__": ("z",)}) for number in range(50)])
    kept.append([enum.Enum(f"E{number}", "A B C") for number in range(10)])
    kept.append([decimal.Decimal(number) / 7 for number in range(1000)])
    kept.append([fractions.Fraction(number, 7) + 1 for number in range(1000)])
    kept.append([datetime.datetime(2000, 1, 1) + datetime.timedelta(number) for number in range(1000)])
    kept.append([pathlib.Path("a", str(number)) / "b" for number in range(500)])


def containers():
    kept.append({number: [number] * (number % 50) for number in range(3000)})
    kept.append({str(number): {number, number + 1} for number in range(2000)})
    kept.append(copy.deepcopy(kept[-2]))
    kept.append(json.loads(json.dumps(kept[-1]), object_hook=lambda found: tuple(found.items())))
    kept.append(sorted(pairs(1000), key=lambda pair: pair[1] * 3))
    kept.append(list(map(lambda *both: list(both), range(1000), range(1000))))
    kept.append(list(itertools.accumulate(range(500), lambda a, b: a + b + 10**6)))
    kept.append(re.sub(r"\w", lambda match: match.group() * 2, "word " * 500))
    kept.append([pairs(number) for number in range(500)])
    for generator in kept[-1]:
        next(generator, None)
    lazy = Lazy()
    kept.append([lazy, [getattr(lazy, f"name{number}") for number in range(300)]])
    kept.append({Lazy(): [number] for number in range(30)})


def problems():
    def fail(depth):
        if depth:
            fail(depth - 1)
        raise ValueError(str(depth) * 30)

    for number in range(200):
        try:
            fail(number % 20)
        except ValueError as error:
            kept.append(error)


async def wait(number):
    async def lists():
        for each in range(3):
            await asyncio.sleep(0)
            yield [each, number]

    await asyncio.sleep(0)
    kept.append([found async for found in lists()])
    async with asyncio.Lock() as got:
        kept.append({"got": got, number: number})
    return {number: [number]}


async def wait_together():
    kept.append(await asyncio.gather(*map(wait, range(100))))


def in_a_thread():
    kept.append([{number: [number, str(number)]} for number in range(2000)])


def in_threads():
    threads = [threading.Thread(target=in_a_thread) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(path):
    ctypes.pythonapi.PyRefTracer_SetTracer(None, None)
    _tracemalloc.clear_traces()
    kept.append(bytes(BEGIN))
    for work in (load, texts_and_trees, objects, containers, problems, in_threads):
        work()
    asyncio.run(wait_together())
    gc.collect()
    snapshot = _tracemalloc._get_traces  # looked up in advance: the lookup could evict a name from the type cache
    end = bytes(END)
    traces = snapshot()
    live = collections.Counter((size, *frames[0]) for _, size, frames, _ in traces)
    with open(path, "w") as file:  # noqa: PTH123
        json.dump([[*where, count] for where, count in live.items()], file)
    return end


if __name__ == "__main__":
    main(sys.argv[1])
