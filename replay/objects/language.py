"""The schema of object programs in YAML (`kind: objects`): functions whose statements create and drop Python objects.

Every statement and every expression stands for one in Python, and means exactly this. A statement is a mapping whose
first key is its verb. An expression is a number, a name such as `node` or `node.parent`, or a mapping whose first key
is what it creates or computes. `replay.objects.twin` writes the program in Python.
"""

import keyword
import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, NonNegativeInt, Tag

from replay.support.names import nearest
from replay.support.units import Size, Time
from replay.support.yaml_documents import Form

MAIN = "main"
"""The function that a program starts with. It has no parameters."""
SELF, INIT, FINALIZER = "self", "__init__", "__del__"
"""The first parameter of methods; the method that `new` calls; that called before the end of an instance."""
LARGEST = (1 << 60) - 1
"""The largest integer in a program, and of those that it computes: two digits of CPython's integers."""
_WORD = "[A-Za-z][A-Za-z0-9_]*"
EXCEPTIONS = {
    "Exception": "Exception",
    "ArithmeticError": "Exception", "OverflowError": "ArithmeticError", "ZeroDivisionError": "ArithmeticError",
    "AssertionError": "Exception",
    "LookupError": "Exception", "IndexError": "LookupError", "KeyError": "LookupError",
    "RuntimeError": "Exception", "NotImplementedError": "RuntimeError",
    "TypeError": "Exception",
    "ValueError": "Exception",
    "GeneratorExit": "GeneratorExit",
    "StopIteration": "Exception",
}  # fmt: skip
"""The exceptions that a program can raise, and their base classes. All have the same size."""
RESERVED = {MAIN, "range", "len", "next", "iter", "set", "gc", "CHOICES", "LETTER", "BYTE", *EXCEPTIONS}
RESERVED |= {"ref", "start_new_thread", "allocate_lock", "SimpleQueue", "sleep", "coroutine"}
"""Names of functions, classes and constants in the program's twin."""


def _word(name: Any) -> Any:
    """Returns a name or place; raises ValueError for a text that is neither."""
    if isinstance(name, str) and not re.fullmatch(rf"{_WORD}(\.{_WORD})*", name):
        raise ValueError(f"{name!r} is not a name; names have letters, digits and underscores, and begin with a letter")
    return name


def _simple(name: Any) -> Any:
    """Returns a name; raises ValueError for any other text."""
    if isinstance(name, str) and "." in name:
        raise ValueError(f"{name!r} is an attribute; only a name is possible here")
    return name


def _release(python: Any) -> Any:
    """Returns a release; raises ValueError for a number, which YAML makes of a release without quotes."""
    if isinstance(python, (int, float)):
        meant = "3.10" if python == 3.1 else python
        raise ValueError(f'{python} is a number in YAML; write the release in quotes: python: "{meant}"')
    return python


def _unreserved(name: str) -> str:
    """Returns a name that a variable can have in Python; raises ValueError for others."""
    if name in RESERVED or keyword.iskeyword(name):
        raise ValueError(f"{name!r} has a meaning in Python; choose another name")
    return name


def _exceptions(names: Any) -> Any:
    """Returns a name, or a list of them; raises ValueError for others."""
    if not isinstance(names, (str, list)) or not names:
        raise ValueError("expected an exception such as `KeyError`, or a list of them")
    return names


def _no_keywords(place: str) -> str:
    """Returns a place whose parts are names in Python; raises ValueError for others."""
    if words := [word for word in place.split(".") if keyword.iskeyword(word)]:
        raise ValueError(f"{words[0]!r} has a meaning in Python; choose another name")
    return place


def _supported(name: Any) -> Any:
    """Returns the name of a method; raises ValueError for special methods that are not simulated."""
    if isinstance(name, str) and name.startswith("_") and name not in (INIT, FINALIZER):
        both = f"{INIT} and {FINALIZER} are"
        raise ValueError(f"{name!r} is not supported; of the names with an underscore in front, only {both}")
    return name


_Text = Annotated[str, BeforeValidator(_word)]
Name = Annotated[_Text, BeforeValidator(_simple), Field(pattern=rf"^{_WORD}$"), AfterValidator(_unreserved)]
Attribute = Annotated[_Text, BeforeValidator(_simple), Field(pattern=rf"^{_WORD}$"), AfterValidator(_no_keywords)]
Place = Annotated[_Text, Field(pattern=rf"^{_WORD}(\.{_WORD})*$"), AfterValidator(_no_keywords)]
"""A variable, or an attribute of the object that a variable refers to."""
MethodName = Annotated[
    str, Field(pattern=rf"^({_WORD}|{INIT}|{FINALIZER})$"), BeforeValidator(_supported), AfterValidator(_no_keywords)
]
ExceptionNames = Annotated[str | list[str], BeforeValidator(_exceptions)]
Threshold = Annotated[int, Field(ge=0, lt=1 << 31)]
Number = Annotated[int, Field(ge=0, le=LARGEST)]


# Expressions


class Text(Form):
    """A text constant: `'abc'`. It exists once, and allocates nothing."""

    text: str


class Letters(Form):
    """A new text of this length: `'x' * n`."""

    letters: "Expression"


class Bytes(Form):
    """New bytes of this length: `b'x' * n`."""

    bytes: "Expression"


class Half(Form):
    """A new float, half of an integer: `n * 0.5`."""

    half: "Expression"


class Sum(Form):
    """`a + b`, of two integers."""

    sum: Annotated[list["Expression"], Field(min_length=2, max_length=2)]


class Product(Form):
    """`a * b`, of two integers."""

    product: Annotated[list["Expression"], Field(min_length=2, max_length=2)]


class NewTuple(Form):
    """`(a, b)`."""

    tuple: list["Expression"]


class NewList(Form):
    """`[a, b]`."""

    list: list["Expression"]


class NewDict(Form):
    """`{k: a, m: b}`."""

    dict_: list[Annotated[list["Expression"], Field(min_length=2, max_length=2)]] = Field(alias="dict", max_length=15)


class NewSet(Form):
    """A set of integers: `{a, b}`, or `set()`."""

    set_: list["Expression"] = Field(alias="set", max_length=15)


class New(Form):
    """A new instance of a class: `Node(a, b)`. The values are those of `__init__`, if the class has it."""

    new: Name
    with_: list["Expression"] = Field(default_factory=list, alias="with")


class Call(Form):
    """A call, `f(a, b)` or `node.method(a, b)`: a statement or an expression.

    `f` is a variable, or else a function of the program.
    """

    call: Place
    with_: list["Expression"] = Field(default_factory=list, alias="with")


class Item(Form):
    """An item of a list or tuple, or a value of a dict: `xs[k]`."""

    item: Place
    at: "Expression"


class Length(Form):
    """`len(xs)`."""

    length: Place


class FirstKey(Form):
    """`next(iter(d))`, of a dict."""

    first_key: Place


class Next(Form):
    """`next(g)`, of a generator or the steps of a coroutine, or `next(g, a)`: a statement or an expression."""

    next: Place
    default: "Expression | None" = None


class Await(Form):
    """`await a`, of a coroutine or of a generator that can be awaited: a statement or an expression."""

    await_: "Expression" = Field(alias="await")


class Steps(Form):
    """`a.__await__()`, of a coroutine: an iterator that runs it, up to where it is suspended next."""

    steps: "Expression"


class NewLock(Form):
    """A new lock, which no thread holds: `allocate_lock()`."""

    lock: Annotated[list[Any], Field(max_length=0)]


class NewQueue(Form):
    """A new queue without items: `SimpleQueue()`."""

    queue: Annotated[list[Any], Field(max_length=0)]


class Take(Form):
    """`q.get()`: waits until the queue has an item."""

    take: Place


class Weakref(Form):
    """A weak reference to an instance: `ref(a)`, or `ref(a, f)` with a callback: a function or bound method."""

    weakref: "Expression"
    callback: "Expression | None" = None


class Referent(Form):
    """`r()`, of a weak reference: the instance, or None once it has ended."""

    referent: Place


# Statements


class Bind(Form):
    """`x = a`, for each name in the order of the file."""

    bind: Annotated[dict[Name, "Expression"], Field(min_length=1)]


class Set(Form):
    """`node.parent = a`, for each attribute in the order of the file."""

    set: Annotated[dict[Place, "Expression"], Field(min_length=1)]


class Drop(Form):
    """`del x`, for each name."""

    drop: Annotated[list[Name], Field(min_length=1)]


class Append(Form):
    """`xs.append(a)`."""

    append: "Expression"
    to: Place


class Store(Form):
    """`xs[k] = a`, of a list or dict."""

    store: "Expression"
    into: Place
    at: "Expression"


class Delete(Form):
    """`del d[k]`, of a dict."""

    delete: Place
    at: "Expression"


class Add(Form):
    """`s.add(a)`, of a set."""

    add: "Expression"
    to: Place


class Discard(Form):
    """`s.discard(a)`, of a set."""

    discard: "Expression"
    from_: Place = Field(alias="from")


class Pop(Form):
    """`xs.pop()`."""

    pop: Place


class Clear(Form):
    """`xs.clear()`."""

    clear: Place


class Collect(Form):
    """`gc.collect(generation)`."""

    collect: Annotated[int, Field(ge=0, le=2)]


class SwitchCollector(Form):
    """`gc.disable()`, `gc.enable()`, `gc.freeze()` or `gc.unfreeze()`."""

    collector: Literal["disable", "enable", "freeze", "unfreeze"]


class Yield(Form):
    """`yield a`. A function with this statement is a generator function: a call of it returns a generator."""

    yield_: "Expression" = Field(alias="yield")


class YieldFrom(Form):
    """`yield from g`, of a generator, a list or a tuple. The function is a generator function."""

    yield_from: Place


class Close(Form):
    """`g.close()`, of a generator or coroutine."""

    close: Place


class Define(Form):
    """`def name(a, b):` in a function. It can use the variables of the functions around it, and bind those that
    `nonlocal` lists."""

    define: Name
    parameters: list[Name] = Field(default_factory=list)
    nonlocal_: list[Name] = Field(default_factory=list, alias="nonlocal")
    do: Annotated[list["Statement"], Field(min_length=1)]


class Start(Form):
    """Starts a thread that calls a function: `start_new_thread(f, (a, b))`."""

    start: Name
    with_: list["Expression"] = Field(default_factory=list, alias="with")


class Acquire(Form):
    """`l.acquire()`: waits until no thread holds the lock."""

    acquire: Place


class Release(Form):
    """`l.release()`."""

    release: Place


class Put(Form):
    """`q.put(a)`, of a queue."""

    put: "Expression"
    to: Place


class Sleep(Form):
    """`sleep(t)`: a call that waits for this time without the GIL."""

    sleep: Time


class Work(Form):
    """Time in which the thread computes without allocations."""

    work: Time


class Return(Form):
    """`return a`."""

    return_: "Expression" = Field(alias="return")


class Raise(Form):
    """`raise ValueError(a, b)`; without `with`, `raise ValueError`. Also `raise e`, of an exception, and `raise`.

    `from: e` is its cause; an empty `from:` is `from None`."""

    raise_: "Expression | None" = Field(alias="raise")
    with_: list["Expression"] | None = Field(default=None, alias="with")
    from_: "Expression | None" = Field(default=None, alias="from")

    @property
    def has_cause(self) -> bool:
        """Whether it has a `from`."""
        return "from_" in self.model_fields_set


class Handler(Form):
    """`except ValueError as e:` with the statements `handle`."""

    except_: ExceptionNames = Field(alias="except")
    as_: Name | None = Field(default=None, alias="as")
    handle: Annotated[list["Statement"], Field(min_length=1)]


class Try(Form):
    """`try:`, and `except ValueError as e:` with the statements `handle`, or `finally:`, or both.

    Several `except` are a list of `handlers`."""

    try_: Annotated[list["Statement"], Field(alias="try", min_length=1)]
    except_: ExceptionNames | None = Field(default=None, alias="except")
    as_: Name | None = Field(default=None, alias="as")
    handle: Annotated[list["Statement"], Field(min_length=1)] | None = None
    handlers: Annotated[list[Handler], Field(min_length=1)] | None = None
    finally_: Annotated[list["Statement"], Field(min_length=1)] | None = Field(default=None, alias="finally")

    @property
    def clauses(self) -> list[Handler]:
        """All `except`, also that without a list."""
        if self.handlers is not None or self.except_ is None or self.handle is None:
            return self.handlers or []
        return [Handler.model_construct(except_=self.except_, as_=self.as_, handle=self.handle)]


class Repeat(Form):
    """`for i in range(n):`."""

    repeat: NonNegativeInt
    as_: Name = Field(alias="as")
    do: Annotated[list["Statement"], Field(min_length=1)]


class Each(Form):
    """`for x in xs:`, of a list, a tuple, the keys of a dict, a generator, or the steps of a coroutine."""

    each: Place
    as_: Name = Field(alias="as")
    do: Annotated[list["Statement"], Field(min_length=1)]


class Choose(Form):
    """With this probability `do`, else `otherwise`. The choices depend on the seed of the program only."""

    choose: Annotated[float, Field(ge=0, le=1)]
    do: Annotated[list["Statement"], Field(min_length=1)]
    otherwise: list["Statement"] = Field(default_factory=list)


class IfKey(Form):
    """`if k in d:`, of a dict or set."""

    if_key: "Expression"
    in_: Place = Field(alias="in")
    do: Annotated[list["Statement"], Field(min_length=1)]
    otherwise: list["Statement"] = Field(default_factory=list)


class IfNone(Form):
    """`if x is None:`."""

    if_none: Place
    do: Annotated[list["Statement"], Field(min_length=1)]
    otherwise: list["Statement"] = Field(default_factory=list)


def _key(form: type[Form]) -> str:
    """Returns the key that distinguishes a form: its first."""
    name, field = next(iter(form.model_fields.items()))
    return field.alias or name


EXPRESSIONS: dict[str, type[Form]] = {
    _key(form): form
    for form in (
        Text, Letters, Bytes, Half, Sum, Product, NewTuple, NewList, NewDict, NewSet, New, Call, Item, Length,
        FirstKey, Next,
        NewLock, NewQueue, Take,
        Await, Steps,
        Weakref, Referent,
    )
}  # fmt: skip
STATEMENTS: dict[str, type[Form]] = {
    _key(form): form
    for form in (
        Bind, Set, Drop, Append, Store, Delete, Add, Discard, Pop, Clear, Call, Collect, SwitchCollector, Return,
        Repeat, Each, Choose, IfKey, Define, Raise, Try, Start, Acquire, Release, Put, Sleep, Work,
        Yield, Next, Close,
        YieldFrom, Await,
        IfNone,
    )
}  # fmt: skip
_FORM_NAMES = {"expression": EXPRESSIONS, "statement": STATEMENTS}


def _tag(value: Any) -> str:
    """Returns the key by which a form is found; pydantic calls it for values of the file and for forms."""
    if isinstance(value, dict):
        return str(next(iter(value), ""))
    return _key(type(value)) if isinstance(value, Form) else "number" if isinstance(value, int) else "place"


def _known(kind: str) -> BeforeValidator:
    """Refuses mappings whose first key is no form of this kind."""
    forms = _FORM_NAMES[kind]

    def check(value: Any) -> Any:
        if isinstance(value, dict) and _tag(value) not in forms:
            raise ValueError(f"unknown {kind} {_tag(value)!r}; {nearest(_tag(value), list(forms))}")
        is_simple = isinstance(value, (int, str)) and not isinstance(value, bool)
        if not isinstance(value, (dict, Form)) and (kind == "statement" or not is_simple):
            what = "a mapping such as `drop: [x]`" if kind == "statement" else "a whole number, a name or a mapping"
            raise ValueError(f"{value!r} is not {'a' if kind == 'statement' else 'an'} {kind}; write {what}")
        return value

    return BeforeValidator(check)


Expression: TypeAlias = Annotated[
    Annotated[Number, Tag("number")]
    | Annotated[Place, Tag("place")]
    | Annotated[Text, Tag("text")]
    | Annotated[Letters, Tag("letters")]
    | Annotated[Bytes, Tag("bytes")]
    | Annotated[Half, Tag("half")]
    | Annotated[Sum, Tag("sum")]
    | Annotated[Product, Tag("product")]
    | Annotated[NewTuple, Tag("tuple")]
    | Annotated[NewList, Tag("list")]
    | Annotated[NewDict, Tag("dict")]
    | Annotated[NewSet, Tag("set")]
    | Annotated[New, Tag("new")]
    | Annotated[Call, Tag("call")]
    | Annotated[Item, Tag("item")]
    | Annotated[Length, Tag("length")]
    | Annotated[FirstKey, Tag("first_key")]
    | Annotated[NewLock, Tag("lock")]
    | Annotated[NewQueue, Tag("queue")]
    | Annotated[Take, Tag("take")]
    | Annotated[Next, Tag("next")]
    | Annotated[Await, Tag("await")]
    | Annotated[Steps, Tag("steps")]
    | Annotated[Weakref, Tag("weakref")]
    | Annotated[Referent, Tag("referent")],
    Discriminator(_tag),
    _known("expression"),
]
Statement: TypeAlias = Annotated[
    Annotated[Bind, Tag("bind")]
    | Annotated[Set, Tag("set")]
    | Annotated[Drop, Tag("drop")]
    | Annotated[Append, Tag("append")]
    | Annotated[Store, Tag("store")]
    | Annotated[Delete, Tag("delete")]
    | Annotated[Add, Tag("add")]
    | Annotated[Discard, Tag("discard")]
    | Annotated[Pop, Tag("pop")]
    | Annotated[Clear, Tag("clear")]
    | Annotated[Call, Tag("call")]
    | Annotated[Collect, Tag("collect")]
    | Annotated[SwitchCollector, Tag("collector")]
    | Annotated[Return, Tag("return")]
    | Annotated[Repeat, Tag("repeat")]
    | Annotated[Each, Tag("each")]
    | Annotated[Choose, Tag("choose")]
    | Annotated[IfKey, Tag("if_key")]
    | Annotated[Define, Tag("define")]
    | Annotated[Raise, Tag("raise")]
    | Annotated[Try, Tag("try")]
    | Annotated[Start, Tag("start")]
    | Annotated[Acquire, Tag("acquire")]
    | Annotated[Release, Tag("release")]
    | Annotated[Put, Tag("put")]
    | Annotated[Sleep, Tag("sleep")]
    | Annotated[Work, Tag("work")]
    | Annotated[Yield, Tag("yield")]
    | Annotated[Next, Tag("next")]
    | Annotated[Close, Tag("close")]
    | Annotated[YieldFrom, Tag("yield_from")]
    | Annotated[Await, Tag("await")]
    | Annotated[IfNone, Tag("if_none")],
    Discriminator(_tag),
    _known("statement"),
]


class Function(Form):
    """A function. All its names are local to a call."""

    coroutine: bool = False
    """Whether a call returns a coroutine: `async def`. With `yield`, a call returns a generator that can be awaited, as
    with `types.coroutine`."""
    parameters: list[Name] = Field(default_factory=list)
    do: Annotated[list[Statement], Field(min_length=1)]


class Class(Form):
    """A class whose instances have these attributes and no dict; without `slots`, any attributes.

    The first parameter of its methods is `self`, which is not listed.
    """

    base: Annotated[str, Field(pattern=rf"^{_WORD}$")] | None = None
    """A class of exceptions that it derives from. Its instances are exceptions."""
    slots: Annotated[list[Attribute], Field(min_length=1)] | None = None
    weakref: bool = False
    """Whether instances with `slots` can have weak references. Instances without `slots` can."""
    methods: dict[MethodName, Function] = Field(default_factory=dict)


class Collector(Form):
    """Settings of the cyclic collector when the program starts."""

    enabled: bool = True
    thresholds: Annotated[list[Threshold], Field(min_length=3, max_length=3)] | None = None
    """As of gc.set_threshold(). Default: those of the release."""


class Limits(Form):
    """Limits that stop a program which does not end."""

    memory: Annotated[Size, Field(ge=1)] = 4 << 30
    """Memory that the simulation itself needs for live objects and their references; about 150 bytes an object."""
    steps: Annotated[int, Field(ge=1, lt=1 << 62)] = 10_000_000_000
    """Steps of the machine: instructions, ends of references, and what collections visit. Checked at jumps back."""
    threads: Annotated[int, Field(ge=1)] = 100_000
    """Threads that are started, besides `main`."""


class Program(Form):
    """An object program: classes, functions, and `main`, which is called once."""

    kind: Literal["objects"]
    description: str = ""
    """What the program does to memory, in one sentence."""
    python: Annotated[
        Literal["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15"], BeforeValidator(_release)
    ] = "3.12"
    """Release of CPython whose rules apply."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    collector: Collector = Field(default_factory=Collector)
    limits: Limits = Field(default_factory=Limits)
    switch_interval: Annotated[Time, Field(gt=0)] = 5_000_000
    """As of sys.setswitchinterval(): how long a thread waits for the GIL until it requests that the holder drops it."""
    classes: dict[Name, Class] = Field(default_factory=dict)
    functions: dict[Name, Function] = Field(default_factory=dict)
    main: Annotated[list[Statement], Field(min_length=1)]


for _form in (*EXPRESSIONS.values(), *STATEMENTS.values()):
    _form.model_rebuild()
Handler.model_rebuild()
