"""Conditions that configurations must meet, like `pymalloc.small_threshold <= pymalloc.pool_size / 8`.

Arithmetic and comparisons over a configuration's keys, in Python's spelling; the values are those of the whole
configuration, whether a sweep varies them or not. A key may be named without its section where only one section has
it. A condition about a section that a stack has not (pymalloc, with `PYTHONMALLOC=malloc`) holds.
"""

import ast
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from replay.config import StackConfig
from replay.errors import ConfigError
from replay.naming import nearest
from replay.units import parse_size

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SECTIONS = ("kernel", "libc", "pymalloc", "domains", "costs")


class _Absent(Exception):
    """The stack has not the section that is named."""


class Constraint:
    """A condition, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.replace("≤", "<=").replace("≥", ">=").strip(), mode="eval").body
        except SyntaxError:
            raise self._refusal("is no condition") from None

    def holds(self, stack: StackConfig) -> bool:
        """Whether the configuration meets it."""
        try:
            verdict = self._value(self._tree, stack)
        except _Absent:
            return True
        except (TypeError, ZeroDivisionError) as mistake:
            raise self._refusal(f"cannot be worked out for {stack.name}: {mistake}") from None
        if not isinstance(verdict, bool):
            raise self._refusal("is a number, no condition")
        return verdict

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(f"constraint {self.text!r} {what}; write it like 'pymalloc.alignment <= 16'")

    def _value(self, node: ast.expr, stack: StackConfig) -> Any:
        if isinstance(node, ast.BoolOp):
            verdicts = (self._value(each, stack) for each in node.values)
            return all(verdicts) if isinstance(node.op, ast.And) else any(verdicts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._value(node.operand, stack)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._value(node.operand, stack)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self._value(node.left, stack), self._value(node.right, stack))
        if isinstance(node, ast.Compare) and all(type(each) in _COMPARISONS for each in node.ops):
            values = [self._value(each, stack) for each in (node.left, *node.comparators)]
            pairs = zip(node.ops, pairwise(values), strict=True)
            return all(_COMPARISONS[type(each)](left, right) for each, (left, right) in pairs)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return self._constant(node.value)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return self._key(stack, node.value.id, node.attr)
        if isinstance(node, ast.Name):
            return self._lone_key(stack, node.id)
        raise self._refusal("has something in it that is neither key, number, comparison nor arithmetic")

    @staticmethod
    def _constant(value: int | float | str) -> Any:
        """A text may be a size."""
        if not isinstance(value, str):
            return value
        try:
            return parse_size(value)
        except ValueError:
            return value

    def _key(self, stack: StackConfig, section: str, key: str) -> Any:
        if section not in _SECTIONS:
            raise self._refusal(f"names {section}, which no stack has; {nearest(section, _SECTIONS)}")
        values: BaseModel | None = getattr(stack, section)
        if values is None:
            raise _Absent
        if key not in type(values).model_fields:
            raise self._refusal(f"names {section}.{key}; {nearest(key, type(values).model_fields)}")
        return getattr(values, key)

    def _lone_key(self, stack: StackConfig, key: str) -> Any:
        there = [name for name in _SECTIONS if key in type(getattr(stack, name)).model_fields] if key else []
        if len(there) != 1:
            known = ", ".join(f"{name}.{key}" for name in there) if there else "no section has it"
            if not there and stack.pymalloc is None:
                raise _Absent
            raise self._refusal(f"names {key}, which is not one key ({known})")
        return self._key(stack, there[0], key)
