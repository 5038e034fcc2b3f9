"""Allocates from all kinds of Python code, each block with its own size, and writes call sites from sys._getframe.

It runs under every interpreter that is recorded with call sites. `take` is C, so the frame that calls it allocates.
"""
# fmt: off

import asyncio
import contextlib
import ctypes
import functools
import itertools
import json
import re
import signal
import sys
import threading
import traceback
import weakref
from sys import _getframe as here

take = ctypes.pythonapi.PyObject_Malloc
take.restype, take.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
sizes, told, alive = itertools.count(1_000_001), {}, []
free = ctypes.pythonapi.PyObject_Free
free.restype, free.argtypes = None, [ctypes.c_void_p]


def say(frame):
    """Returns the size of the next block, and stores that the calling frame allocates it."""
    size = next(sizes)
    told[size] = [frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno]
    return size


def plain(): free(take(say(here())))


def recursive(depth):
    take(say(here()))
    if depth:
        recursive(depth - 1)
        take(say(here()))


def generator():
    for _ in range(3):
        take(say(here()))
        yield _
    yield from (take(say(here())) for _ in range(2))


def with_cells(a, *rest, b=1, **named):
    def inner():
        take(say(here()))
        return a, rest, b, named
    inner()
    take(say(here()))


def comprehensions():
    _ = [take(say(here())) for _ in range(2)]
    _ = {take(say(here())) for _ in range(2)}
    _ = {take(say(here())): 1 for _ in range(2)}
    _ = list(take(say(here())) for _ in range(2))  # noqa: C400
    _ = [[take(say(here())) for _ in range(2)] for _ in range(2)]


class Kind(type):
    def __new__(cls, name, bases, space):
        take(say(here()))
        return super().__new__(cls, name, bases, space)

    def __call__(cls, *arguments):
        take(say(here()))
        return super().__call__(*arguments)


class Described:
    def __set_name__(self, owner, name): take(say(here()))
    def __get__(self, thing, kind): return take(say(here()))


class Thing(metaclass=Kind):
    take(say(here()))
    described = Described()

    def __init__(self): take(say(here()))
    def __eq__(self, other): return not take(say(here()))
    def __hash__(self): return take(say(here())) and 1
    def __del__(self): take(say(here()))
    def __getattr__(self, name): return take(say(here()))
    def __iter__(self): return iter([take(say(here()))])
    def __lt__(self, other): return not take(say(here()))
    def __enter__(self): take(say(here()))
    def __exit__(self, *_): take(say(here()))
    def __repr__(self): return str(take(say(here())))
    def __bool__(self): return bool(take(say(here())))
    def __add__(self, other): return take(say(here()))
    @property
    def price(self): return take(say(here()))
    @classmethod
    def of_class(cls): take(say(here()))
    @staticmethod
    def of_none(): take(say(here()))


class Simple:
    def __init__(self): take(say(here()))


def things():
    thing = Thing()
    _ = thing.described, thing.price, thing.missing, thing + 1, f"{thing!r}", not thing
    thing.of_class()
    thing.of_none()
    _ = {thing: 1}
    _ = thing == 2, thing < 3, list(thing), sorted([thing, thing])
    with thing:
        take(say(here()))
    del thing
    for _ in range(40):  # often enough to be specialised
        Simple()


def called_by_c():
    sorted([3, 1, 2], key=lambda _: take(say(here())))
    list(map(lambda _: take(say(here())), range(2)))  # noqa: C417
    list(filter(lambda _: take(say(here())), range(2)))
    functools.reduce(lambda *_: take(say(here())), range(3))
    sorted([3, 1, 2], key=functools.cmp_to_key(lambda *_: take(say(here())) and 0))
    json.loads('{"a": [{"b": 1.5}]}', object_hook=lambda _: take(say(here())), parse_float=lambda _: take(say(here())))
    json.dumps([object(), {1: object()}], default=lambda _: take(say(here())))
    re.sub("x", lambda _: str(take(say(here()))), "xxyx")
    weakref.finalize(Described(), lambda: take(say(here())))
    signal.signal(signal.SIGUSR1, lambda *_: take(say(here())))
    signal.raise_signal(signal.SIGUSR1)
    ctypes.CFUNCTYPE(None)(lambda: take(say(here())) and None)()
    eval("take(say(here()))")
    exec("def f():\n  take(say(here()))\nf()\nclass C:\n  f = take(say(here()))", globals())
    functools.partial(recursive, 1)()


def decorated(function):
    @functools.wraps(function)
    def around(*arguments):
        take(say(here()))
        return function(*arguments)
    return around


@decorated
@functools.lru_cache
@decorated
def inside(number): return take(say(here())) and number


@contextlib.contextmanager
def managed():
    take(say(here()))
    try:
        yield
    finally:
        take(say(here()))


def exceptions():
    try:
        try:
            recursive(2)
            raise ValueError(take(say(here())))
        except ValueError as error:
            take(say(here()))
            traceback.format_exception(error)
            raise KeyError from error
        finally:
            take(say(here()))
    except* KeyError:
        take(say(here()))
    with contextlib.suppress(ZeroDivisionError), managed():
        take(say(here()))
        1 / 0  # noqa: B018
    throwing = generator()
    next(throwing)
    with contextlib.suppress(KeyError):
        throwing.throw(KeyError)
    match [1, {"a": take(say(here()))}]:
        case [1, {"a": block}] if take(say(here())):
            take(say(here()) + 0 * block)


async def coroutine(depth):
    take(say(here()))
    await asyncio.sleep(0)
    take(say(here()))
    if depth:
        await coroutine(depth - 1)

    async def numbers():
        for number in range(2):
            take(say(here()))
            await asyncio.sleep(0)
            yield number
    _ = [take(say(here())) async for _ in numbers()]
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lambda: take(say(here())))
        take(say(here()))


async def coroutines():
    await asyncio.gather(*map(coroutine, range(3)))


def имя():
    class Ж日本:
        def café(self): take(say(here()))
    Ж日本().café()


def long_functions():
    """Thousands of lines, columns beyond 255, and a gap of 70,000 lines."""
    lines = [f"{' ' * (number % 300)}take(say(here()))".strip() + "\n" * (number % 3) for number in range(2000)]
    wide = "x = [" + "None, " * 200 + "take(say(here()))]"
    source = "def long():\n " + "\n ".join([*lines, wide]) + "\n" * 70_000 + " take(say(here()))\nlong()\n"
    exec(compile(source, "long.py", "exec"), globals())


def replaced_codes():
    """Each code object has the address of the previous one."""
    for number in range(500):
        space = {"take": take, "say": say, "here": here}
        source = "\n" * (number % 7) + f"def f{number:04}(): take(say(here()))\nf{number:04}()"
        exec(compile(source, f"file{number:04}.py", "exec"), space)


def immortal():
    """A code object without reference counting; since 3.14, frames have a tag for that in their pointer to it."""
    space = {"take": take, "say": say, "here": here}
    exec("def forever():\n  take(say(here()))", space)
    ctypes.c_uint32.from_address(id(space["forever"].__code__)).value = 3 << 30 if sys.version_info >= (3, 14) else ~0
    alive.append(space["forever"])
    space["forever"]()


def traced():
    sys.settrace(lambda *_: traced_by)
    plain()
    list(generator())
    sys.settrace(None)


def traced_by(frame, event, argument):
    return traced_by


def threads():
    def work():
        for _ in range(50):
            take(say(here()))
            list(generator())
    started = [threading.Thread(target=work) for _ in range(4)]
    _ = [each.start() for each in started]
    _ = [each.join() for each in started]


NEWER = {
    (3, 12): "def typed[T: take(say(here()))](x: T): pass\n_ = typed.__type_params__[0].__bound__\n",
    (3, 14): "def noted(x: take(say(here()))): pass\n_ = noted.__annotations__\n_ = t'{take(say(here()))}'\n",
}


def newer_syntax():
    for version, source in NEWER.items():
        if sys.version_info >= version:
            exec(source, globals())


def main(path):
    _ = [plain() for _ in range(3)]
    recursive(30)
    list(generator())
    with_cells(1, 2, c=3)
    comprehensions()
    things()
    called_by_c()
    inside(1)
    exceptions()
    asyncio.run(coroutines())
    имя()
    long_functions()
    replaced_codes()
    if sys.version_info >= (3, 12):
        immortal()
    traced()
    threads()
    newer_syntax()
    import imported_module  # noqa: F401
    with open(path, "w") as file:  # noqa: PTH123
        json.dump(told, file)


if __name__ == "__main__":
    sys.modules["saying"] = sys.modules["__main__"]
    main(sys.argv[1])
