"""Conditions that configurations must meet, like `pymalloc.small_threshold <= pymalloc.pool_size / 8`.

A condition is a Python expression with arithmetic and comparisons. Its names are keys of the configuration, varied or
not. The section of a key can be omitted if only one section has the key. If a stack does not have the key (of pymalloc
with `PYTHONMALLOC=malloc`, or arenas of a libc without them), the condition is met.
"""

import ast
import operator
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

from replay.config import StackConfig
from replay.support.errors import ConfigError
from replay.support.names import nearest
from replay.support.units import parse_size

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
_LENGTH_MAX = 1000
"""Maximum length. Python's parser fails for conditions with thousands of brackets."""


class _Absent(Exception):
    """The stack does not have the named key."""


class Unanswerable(Exception):
    """The condition cannot be evaluated for a stack: it divides by 0, or compares a number with a text."""


class Constraint:
    """A parsed and checked condition."""

    def __init__(self, text: str, keys: Collection[str]) -> None:
        """Parses a condition. `keys`: all keys that a stack of the sweep can have, like `pymalloc.alignment`."""
        self.text, self._keys = text, keys
        try:
            if len(text) > _LENGTH_MAX:
                raise SyntaxError
            self._tree = ast.parse(text.replace("≤", "<=").replace("≥", ">=").strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refusal("is not a condition") from None
        self._refuse_condition(self._tree)

    def holds(self, stack: StackConfig) -> bool:
        """Whether the configuration meets it."""
        try:
            return self._verdict(self._tree, stack)
        except _Absent:
            return True
        except (TypeError, ZeroDivisionError, OverflowError) as mistake:
            raise Unanswerable(f"{self.text} cannot be evaluated: {mistake}") from None

    def _refusal(self, mistake: str) -> ConfigError:
        return ConfigError(f"constraint {self.text!r} {mistake}; write it like 'pymalloc.alignment <= 16'")

    def _refuse_condition(self, node: ast.expr) -> None:
        """Raises ConfigError if a part of the expression is not a valid condition for any stack."""
        if isinstance(node, ast.BoolOp):
            for each in node.values:
                self._refuse_condition(each)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._refuse_condition(node.operand)
        elif isinstance(node, ast.Compare):
            if not all(type(each) in _COMPARISONS for each in node.ops):
                raise self._refusal("has a comparison other than < <= > >= == !=")
            for each in (node.left, *node.comparators):
                self._refuse_term(each)
        elif isinstance(node, ast.Name | ast.Attribute):
            self._section_and_key(node)
        else:
            raise self._refusal("is not a condition but a number")

    def _refuse_term(self, node: ast.expr) -> None:
        """Raises ConfigError if a part of the expression is not a key, number, text or arithmetic."""
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            self._refuse_term(node.left)
            self._refuse_term(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            self._refuse_term(node.operand)
        elif isinstance(node, ast.Name | ast.Attribute):
            self._section_and_key(node)
        elif not (isinstance(node, ast.Constant) and isinstance(node.value, int | float | str)):
            raise self._refusal("contains more than keys, numbers, comparisons and arithmetic")

    def _verdict(self, node: ast.expr, stack: StackConfig) -> bool:
        if isinstance(node, ast.BoolOp):
            verdicts = (self._verdict(each, stack) for each in node.values)
            return all(verdicts) if isinstance(node.op, ast.And) else any(verdicts)
        if isinstance(node, ast.UnaryOp):
            return not self._verdict(node.operand, stack)
        if isinstance(node, ast.Compare):
            values = [self._value(each, stack) for each in (node.left, *node.comparators)]
            pairs = zip(node.ops, pairwise(values), strict=True)
            return all(_COMPARISONS[type(each)](left, right) for each, (left, right) in pairs)
        verdict = self._value(node, stack)
        if not isinstance(verdict, bool):
            raise self._refusal("is not a condition but a number")
        return verdict

    def _value(self, node: ast.expr, stack: StackConfig) -> Any:
        if isinstance(node, ast.BinOp):
            return _ARITHMETIC[type(node.op)](self._value(node.left, stack), self._value(node.right, stack))
        if isinstance(node, ast.UnaryOp):
            return -self._value(node.operand, stack)
        if isinstance(node, ast.Constant):
            return self._constant(node.value)
        section, key = self._section_and_key(node)
        values = stack.section(section)
        if values is None or key not in type(values).model_fields:
            raise _Absent
        return getattr(values, key)

    @staticmethod
    def _constant(value: Any) -> Any:
        """Returns a constant; texts that are sizes as numbers."""
        if not isinstance(value, str):
            return value
        try:
            return parse_size(value)
        except ValueError:
            return value

    def _section_and_key(self, node: ast.expr) -> tuple[str, str]:
        """Returns section and key of a name in the condition."""
        name = ast.unparse(node)
        sections = [key for key in self._keys if key == name or key.endswith(f".{name}")]
        if not sections:
            raise self._refusal(f"names {name}, which no stack has; {nearest(name, sorted(self._keys))}")
        if len(sections) > 1:
            raise self._refusal(f"names {name}, which is ambiguous ({', '.join(sorted(sections))})")
        section, _, key = sections[0].partition(".")
        return section, key
