"""Expressions over several lines: the line that allocates differs from that of the previous instruction.

Each function allocates once a round on each line with a mark, and on no other; rounds are enough for every instruction
to be specialised. The frame has to be told of each instruction before it allocates, or the line would be another.
"""
# fmt: off

import gc

ROUNDS = 20_000
INDICES = list(range(ROUNDS))
TRIPLE, NAMED = (1, 2, 3), {"c": 3}


def generator(number):
    yield number


def with_cell(number):
    return lambda: number


class Node:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def method(self):
        pass


def taking(*rest, **named):
    return rest, named

def add_ints(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            +
            b
        )

def multiply_ints(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            *
            b
        )

def subtract_ints(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            -
            b
        )

def add_floats(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            +
            b
        )

def multiply_floats(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            *
            b
        )

def add_a_float_to_an_int(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            +
            b
        )

def negate(kept, a, b):
    for at in INDICES:
        kept[at] = (
            -(  # here
                a
            )
        )

def join_texts(kept, a, b):
    for at in INDICES:
        kept[at] = (
            a  # here
            +
            b
        )

def format_texts(kept, a, b):
    for at in INDICES:
        kept[at] = (
            f"{a}"  # here
            f"{b}"
        )

def slice_a_text(kept, a, b):
    for at in INDICES:
        kept[at] = a[  # here
            1
            :
            b
        ]

def make_a_tuple(kept, a, b):
    for at in INDICES:
        kept[at] = (  # here
            a,
            b,
            a,
            b,
            a,
        )

def make_a_list(kept, a, b):
    for at in INDICES:
        kept[at] = [  # here
            a,
            b,
            a,
            b,
            a,
            b,
            a,
            b,
            a,
        ]

def make_a_dict(kept, a, b):
    for at in INDICES:
        kept[at] = {  # here
            a:
            b,
            b:
            a,
        }

def make_a_set(kept, a, b):
    for at in INDICES:
        kept[at] = {  # here
            a,
            b,
        }

def make_a_function(kept, a, b):
    for at in INDICES:
        kept[at] = (
            lambda  # here
            x=
            a:
            x
        )

def call_a_type(kept, a, b):
    for at in INDICES:
        kept[at] = bytes(  # here
            b
        )

def call_a_method(kept, a, b):
    for at in INDICES:
        kept[at] = a.replace(  # here
            b,
            "wxyz"
        )

def call_with_all_kinds_of_arguments(kept, a, b):
    for at in INDICES:
        kept[at] = taking(  # here
            *
            a,
            **
            b
        )

def make_an_object(kept, a, b):
    for at in INDICES:
        kept[at] = Node(  # here
            a
        )

def make_a_generator(kept, a, b):
    for at in INDICES:
        kept[at] = generator(  # here
            a
        )

def make_a_cell(kept, a, b):
    for at in INDICES:
        kept[at] = with_cell(  # here
            a
        )

def bind_a_method(kept, a, b):
    for at in INDICES:
        bound = (
            a.method  # here
        )
        kept[
            at
        ] = bound

def unpack_a_rest(kept, a, b):
    for at in INDICES:
        (  # here
            _,
            *rest
        ) = (
            a
        )
        kept[at] = rest

def count_in_a_loop(kept, a, b):
    kept.clear()
    for number in range(a, b):  # here
        kept.append(  # or here: the list grows
            number
        )

def append_to_a_list(kept, a, b):
    for at in INDICES:
        kept[at] = [  # here
            a  # here since 3.12, by CPython's own line table
            for _ in
            b  # or here: up to 3.13 the iterator is made
        ]

CASES = {
    add_ints: (2**28, 2**28 + 1),
    multiply_ints: (2**14, 2**14 + 1),
    subtract_ints: (2**29, 2**28),
    add_floats: (1.5, 2.5),
    multiply_floats: (1.5, 2.5),
    add_a_float_to_an_int: (1.5, 7),
    negate: (2**28, None),
    join_texts: ("a" * 40, "b" * 40),
    format_texts: ("a" * 40, "b" * 40),
    slice_a_text: ("a" * 40, 30),
    make_a_tuple: (1, 2),
    make_a_list: (1, 2),
    make_a_dict: (1, 2),
    make_a_set: (1, 2),
    make_a_function: (1, 2),
    call_a_type: (None, 77),
    call_a_method: ("a" * 40, "a"),
    call_with_all_kinds_of_arguments: (TRIPLE, NAMED),
    make_an_object: (1, None),
    make_a_generator: (1, None),
    make_a_cell: (1, None),
    bind_a_method: (Slotted(), None),
    unpack_a_rest: (TRIPLE, None),
    count_in_a_loop: (10**6, 10**6 + ROUNDS),
    append_to_a_list: (1, TRIPLE),
}

if __name__ == "__main__":
    gc.disable()
    for case, arguments in CASES.items():
        case([None] * ROUNDS, *arguments)
