"""Reads YAML documents with the core schema of YAML 1.2, and converts them to pydantic models.

In YAML 1.1, which PyYAML implements, `1:30:00` is 5400, `010` is 8, `no` is false and `2024-01-01` is a date. In the
core schema of 1.2 (section 10.3 of the specification), `010` is 10 and the others are texts. Two rules of 1.1 remain:
`<<` merges mappings, and `1e3`, without a point, is a text, which `replay.support.units` converts to a whole number.

Errors name file, line and key: PyYAML has the position of a node, pydantic the wrong key. The JSON Schema of the model
has the nearest correct key.
"""

import os
import re
import stat
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from replay.support.errors import ReplayError
from replay.support.names import nearest

Location = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)
_PROBLEMS_SHOWN = 5
BYTES_MAX = 4 << 20
"""Maximum size of a document. The largest real ones have a hundredth of that."""
_VALUES_MAX = 1 << 20
"""Maximum number of values of a document with its aliases written out: ten lines of them can stand for billions."""
_SHOWN_MAX = 200
"""Maximum number of characters of a value in a sentence."""


_DIGITS_MAX = 400
"""Maximum number of digits of a number. Every 64-bit float has fewer."""
_CORE_SCHEMA = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:merge": (r"<<", ["<"]),
}
"""For each tag, the expression for its plain texts and their first characters. The first match counts."""


_WHOLE, _NUMBER, _EITHER = "should be a whole number", "should be a number", "should be true or false"
_SENTENCES = {
    "list_type": "should be a list", "string_type": "should be a text", "invalid_key": "should be a text, as all keys",
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_from_float": _WHOLE, "float_type": _NUMBER,
    "float_parsing": _NUMBER, "bool_type": _EITHER, "bool_parsing": _EITHER,
}  # fmt: skip
"""By type of pydantic's error, what is said of the value. Others have pydantic's own words."""


class _Loader(yaml.SafeLoader):
    """Resolves plain texts by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - declared by PyYAML, not as a ClassVar

    def construct_document(self, node: Node) -> Any:
        if _expanded_values(node, {}) > _VALUES_MAX:
            what = f"its aliases stand for more than {_VALUES_MAX:,} values"
            raise yaml.constructor.ConstructorError(problem=what, problem_mark=node.start_mark)
        return super().construct_document(node)

    def construct_core_int(self, node: ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _DIGITS_MAX:
            what = f"a number has {len(text):,} digits, more than {_DIGITS_MAX}"
            raise yaml.constructor.ConstructorError(problem=what, problem_mark=node.start_mark)
        return int(text, 0 if text.startswith(("0o", "0x")) else 10)


for _tag, (_pattern, _first) in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_core_int)


def _expanded_values(node: Node, known: dict[int, int]) -> int:
    """Returns the number of values below a node, those behind aliases included each time. `known` has it by node."""
    if id(node) not in known:
        known[id(node)] = 1  # of a node within itself
        below = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        if not isinstance(node, ScalarNode):
            known[id(node)] += sum(_expanded_values(each, known) for each in below)
    return known[id(node)]


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text; raises ValueError with one line for a mistake."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as mistake:
        raise ValueError(mistake.problem) from None
    except yaml.YAMLError as mistake:
        raise ValueError(str(mistake).partition("\n")[0]) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Form(BaseModel):
    """A mapping in a document. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(NamedTuple):
    """A mistake at a place in a document."""

    location: Location
    what: str


def read_document(path: Path, error: type[ReplayError], bytes_max: int = BYTES_MAX) -> str:
    """Returns the text of a regular file of at most `bytes_max` bytes; raises `error` for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not wait for a pipe's writer
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{path}: is not a regular file")
            content = file.read(bytes_max + 1)
        if len(content) > bytes_max:
            raise error(f"{path}: exceeds the limit of {bytes_max >> 20} MiB")
        return content.decode()
    except OSError as mistake:
        raise error(f"{path}: cannot be read: {mistake.strerror}") from mistake
    except UnicodeDecodeError as mistake:
        raise error(f"{path}: is not text in UTF-8; save it as UTF-8") from mistake


class Document:
    """A YAML file, with the positions of all keys."""

    def __init__(self, path: Path, error: type[ReplayError], example: str) -> None:
        """Reads `path`; raises `error` for a mistake. `example`: a valid line of such a file, for error messages."""
        self.path, self._error = path, error
        text = read_document(path, error)
        try:
            loader = _Loader(text)
            self._root = loader.get_single_node()
            self._refuse_duplicates(self._root, set())
            data = loader.construct_document(self._root) if self._root else None
        except yaml.MarkedYAMLError as mistake:
            line = mistake.problem_mark.line + 1 if mistake.problem_mark else 1
            raise error(f"{path}:{line}: is not valid YAML: {mistake.problem}") from mistake
        except (yaml.YAMLError, ValueError) as mistake:
            raise error(f"{path}: is not valid YAML: {str(mistake).splitlines()[0]}") from mistake
        except RecursionError:
            raise error(f"{path}: is not valid YAML: nested too deeply") from None
        if not isinstance(data, dict):
            raise error(f"{path}:1: must be a mapping of keys to values, like `{example}`")
        self.data: dict[str, Any] = data

    def parse(self, model: type[Model]) -> Model:
        """Returns the document as a model."""
        try:
            return model.model_validate(self.data)
        except ValidationError as mistakes:
            raise self.refusal(_find_problems(model.model_json_schema(), mistakes)) from None

    def refusal(self, problems: list[Problem]) -> ReplayError:
        """Returns an error with one sentence for each problem, with file, line and key."""
        lines = [self.sentence(*problem) for problem in problems[:_PROBLEMS_SHOWN]]
        if len(problems) > _PROBLEMS_SHOWN:
            lines.append(f"{self.path}: and {len(problems) - _PROBLEMS_SHOWN} more of the kind")
        return self._error(*lines)

    def sentence(self, location: Location, what: str) -> str:
        """Returns a mistake with file, line and key before it."""
        keys, line = self._find(location)
        return f"{self.path}:{line}: {'.'.join(keys) + ': ' if keys else ''}{what}"

    def _find(self, location: Location) -> tuple[list[str], int]:
        """Returns the keys of `location` that are in the file, and the line of the last. Skips pydantic's own tags."""
        node, line, keys = self._root, 1, []
        for part, following in zip_longest(location, location[1:]):
            children = {name: (place, child) for name, place, child in _children(node)}
            if str(part) not in children:
                continue
            place, child = children[str(part)]
            is_tag = str(following) in children and str(following) not in {name for name, _, _ in _children(child)}
            if not is_tag:  # a form can be tagged by one of its keys
                node, line = child, place.start_mark.line + 1
                keys.append(str(part))
        return keys, line

    def _refuse_duplicates(self, node: Node | None, seen: set[int]) -> None:
        """Raises an error for duplicate keys, because YAML would silently use the last one."""
        if node is None or id(node) in seen:
            return
        seen.add(id(node))
        names: dict[str, int] = {}
        for name, place, child in _children(node):
            line = place.start_mark.line + 1
            if name in names:
                first = names[name]
                raise self._error(f"{self.path}:{line}: duplicate key {name!r}, first on line {first}")
            names[name] = line
            self._refuse_duplicates(child, seen)


def _children(node: Node | None) -> Iterator[tuple[str, Node, Node]]:
    """Yields name, key node and value node of each entry of a mapping or list."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value != "<<":
                yield key.value, key, value
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value, value


def _find_problems(schema: dict[str, Any], mistakes: ValidationError) -> list[Problem]:
    """Returns pydantic's errors as problems. A misspelt key is reported once, not also as a missing key."""
    found = mistakes.errors(include_url=False)
    misspelt = {mistake["loc"][:-1] for mistake in found if mistake["type"] == "extra_forbidden"}
    problems = []
    for mistake in found:
        location = mistake["loc"]
        if mistake["type"] == "missing" and location[:-1] in misspelt:
            continue
        if mistake["type"] == "union_tag_invalid":
            location = (*location, "kind")
        problems.append(Problem(location, explain(schema, mistake)))
    return problems


def explain(schema: dict[str, Any], mistake: Any) -> str:
    """Returns a sentence for one of pydantic's errors. An empty schema knows no keys."""
    kind, location, context = mistake["type"], mistake["loc"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(location[-1], _keys_at(schema, location[:-1]))}" if schema else "unknown key"
    if kind == "missing":
        return f"key {location[-1]!r} is missing"
    if kind == "union_tag_invalid":
        return f"unknown kind {context['tag']!r}; {nearest(context['tag'], _tags(context['expected_tags']))}"
    if kind == "union_tag_not_found":
        return "key 'kind' is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{_shown(mistake['input'])} must be a mapping of keys to values"
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        items = "item" if bound.endswith(" 1") else "items"
        return f"{_shown(mistake['input'])} should have {bound} {items}, not {context['actual_length']}"
    said = _SENTENCES.get(kind) or mistake["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{_shown(mistake['input'])} {said}"


def _shown(value: Any) -> str:
    """Returns a value as shortened text. TOML can have integers that Python refuses to convert to text."""
    try:
        text = repr(value)
    except ValueError:
        return "a number with thousands of digits"
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 1]}…"


def _tags(expected: str) -> list[str]:
    return [tag.strip().strip("'") for tag in expected.split(",")]


def _keys_at(schema: dict[str, Any], location: Location) -> list[str]:
    """Returns the keys of the schema at a place."""
    node, tag = _resolve(schema, schema, None), None
    for index, part in enumerate(location):
        following = location[index + 1] if index + 1 < len(location) else None
        if tag is not None and part == tag:
            tag = None
            continue
        child = node.get("properties", {}).get(part) if isinstance(part, str) else node.get("items")
        child = child or next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))
        if isinstance(child, dict):
            node = _resolve(schema, child, following)
            tag = following if _has_forms(schema, child) and _tag_of(node) == following else None
    return list(node.get("properties", {}))


def _has_forms(schema: dict[str, Any], node: dict[str, Any]) -> bool:
    """Whether a place of the schema can have one of several forms."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return "oneOf" in node or "anyOf" in node


def _resolve(schema: dict[str, Any], node: dict[str, Any], tag: object) -> dict[str, Any]:
    """Follows references. Of several forms, returns the one called `tag`, else the one with keys."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    forms = node.get("oneOf") or node.get("anyOf")
    if not forms:
        return node
    resolved = [_resolve(schema, form, tag) for form in forms]
    named = [form for form in resolved if tag is not None and _tag_of(form) == tag]
    return (named or [form for form in resolved if "properties" in form] or [node])[0]


def _tag_of(form: dict[str, Any]) -> object:
    """Returns what distinguishes a form: the value of `kind` in a workload, of `model` in a stack; the first key of a
    statement in an object program."""
    keys = form.get("properties", {})
    return next((keys[key].get("const") for key in ("kind", "model") if key in keys), next(iter(keys), None))
