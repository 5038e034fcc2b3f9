"""The tables of the documentation that are made from declarations are those of the code."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs"))
from tables import PAGES, with_tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_the_declarations(page):
    text = page.read_text(encoding="utf-8")
    assert with_tables(page.name, text) == text, "run docs/refresh.py"
