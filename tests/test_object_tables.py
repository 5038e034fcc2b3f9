"""The sizes and free lists of real interpreters are those of the rules, and of docs/object-tables.md."""

import re
from functools import cache
from pathlib import Path

import pytest

from replay.objects.kinds import Kind
from replay.objects.rules import free_list_limits, rules_of
from replay.verification.object_oracles import find_object_oracles
from replay.verification.object_tables import measure

ORACLES = find_object_oracles()
PAGE = Path(__file__).parents[1] / "docs" / "object-tables.md"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not ORACLES, reason="no libpython from 3.8 on on this machine: see `replay verify --list`"),
]
each_version = pytest.mark.parametrize("version", ORACLES)


@cache
def measured(version):
    return measure(ORACLES[version])


def numbers(version):
    return tuple(map(int, version.split(".")))


@each_version
def test_free_lists_keep_as_many_objects_as_the_rules_say(version):
    limits, kept = free_list_limits(numbers(version)), measured(version)["kept"]
    of_tuples = {f"tuple of {length}": len(Kind) + length for length in (1, 3, 20)}
    places = {
        "float": Kind.FLOAT, "list": Kind.LIST, "dict": Kind.DICT, "bound method": Kind.METHOD, "range": Kind.RANGE,
        "int": Kind.INT, **of_tuples,
    }  # fmt: skip
    expected = {name: str(limits[place]) for name, place in places.items()}
    if numbers(version)[:2] in ((3, 11), (3, 12)):
        expected["tuple of 20"] = "0"  # kept, but never used again: `tuples_lost`
    assert kept == expected


@each_version
def test_sizes_are_those_of_the_rules(version):
    rules, sizes = rules_of(numbers(version))[0], measured(version)["sizes"]
    assert sizes["int below 2^30"] == str(max(28, rules.int_least))
    assert sizes["str, 10 ASCII characters"] == str(rules.text_header + 10)
    assert sizes["tuple of 3"] == str(rules.tuple_header + 3 * 8)
    assert sizes["function"] == str(rules.function_bytes)
    assert sizes["ValueError()"] == str(rules.exception_bytes)
    assert sizes["range"].endswith("48")
    assert sizes["dict of 1 int"].startswith("64 + ")


def table_of(section):
    """The cells of the table in a section of the page, by row and heading."""
    text = PAGE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@each_version
def test_the_page_has_what_was_measured(version):
    sizes, kept = table_of("Sizes"), table_of("Free lists")
    if version not in sizes["float"]:
        pytest.skip(f"docs/object-tables.md was not measured on {version}")
    assert {name: row[version] for name, row in sizes.items()} == measured(version)["sizes"]
    assert {name: row[version] for name, row in kept.items()} == measured(version)["kept"]
    page = PAGE.read_text(encoding="utf-8")
    for row, value in measured(version)["growth"].items():
        line = rf"^\| {re.escape(row)} \|[^|]*\b{re.escape(version)}\b[^|]*\| {re.escape(value)} \|$"
        assert re.search(line, page, re.MULTILINE), row
