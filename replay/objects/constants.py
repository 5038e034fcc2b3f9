"""The constants that CPython's compiler makes of expressions."""

from dataclasses import dataclass
from typing import TypeAlias

from replay.objects import language
from replay.objects.language import Expression


@dataclass(frozen=True)
class FunctionValue:
    """A function of the program, as a value."""

    number: int


Constant: TypeAlias = "int | float | str | tuple[Constant, ...] | FunctionValue | None"
"""A constant; the value of a float does not matter."""


def number_of(expression: object) -> int | None:
    """Returns the integer that CPython's compiler computes; None if it computes none."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, (language.Sum, language.Product)):
        is_sum = isinstance(expression, language.Sum)
        first, second = map(number_of, _operands(expression))
        if first is not None and second is not None:
            return first + second if is_sum else first * second
    return None


def _operands(form: language.Sum | language.Product) -> list[Expression]:
    return form.sum if isinstance(form, language.Sum) else form.product


def is_constant(expression: object) -> bool:
    """Whether CPython's compiler makes a constant of an expression."""
    if isinstance(expression, language.NewTuple):
        return all(map(is_constant, expression.tuple))
    if isinstance(expression, language.Half):
        return number_of(expression.half) is not None
    return isinstance(expression, language.Text) or number_of(expression) is not None


def value_of(expression: Expression) -> Constant:
    """Returns the value of a constant."""
    if isinstance(expression, language.NewTuple):
        return tuple(map(value_of, expression.tuple))
    if isinstance(expression, language.Text):
        return expression.text
    return 0.5 if isinstance(expression, language.Half) else number_of(expression)
