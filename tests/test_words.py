"""Help texts, listings, README and docs are plain technical English: no words of the old dialect, short sentences."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from replay.__main__ import COMMANDS, app, load_command

ROOT = Path(__file__).parents[1]
SENTENCE_WORDS_MAX = 25
NOT_OURS = {
    r"told|tells": "says, reports, names, distinguishes",
    r"(held|holds?) against": "compared with",
    r"(giv(e|es|en|ing)|gave) back|tak(e|es|en|ing) back": "released",
    r"ask(s|ed|ing)? for": "requested",
    r"as it were": "leave it out",
    r"(if|unless|where) (not|nothing is) said|is said": "default; a message says",
    r"nobody": "no code, no user",
    r"(go|goes|going|went) on": "continues",
    r"what is there": "live",
    r"is none": "is unknown, not supported, missing",
    r"more than (it|they) may": "exceeds",
    r"(?<!there )is no(?! (longer|more|less))": "is not a",
    r"who (asked|holds)": "call site; pinned by",
    r"in the wild|at hand": "in real programs; available",
    r"born|birth": "allocated, allocation",
    r"play(s|ed|ing|er|ers)?(?! a role)": "simulate, run",
    r"so many": "a number of, N",
}
"""Regular expressions of words and turns, with what to write instead; docs/glossary.md has the words to use."""


def found_in(text):
    return [
        f"{hit[0]!r}: write {instead}"
        for expression, instead in NOT_OURS.items()
        for hit in re.finditer(rf"\b({expression})\b", re.sub(r"\s+", " ", text), re.IGNORECASE)
    ]


def prose(markdown):
    """The text of a page without code blocks and code spans, whose names are those of programs."""
    return re.sub(r"```.*?```|`[^`]*`", "`code`", markdown, flags=re.DOTALL)


def commands(name, command):
    yield name, command
    for below, each in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {below}", each)


def paragraphs(command):
    texts = [command.help, command.epilog, *(getattr(each, "help", None) for each in command.params)]
    return [paragraph for text in texts for paragraph in (text or "").split("\n\n") if paragraph]


HELP = {
    "replay": [app.registered_callback.callback.__doc__, app.registered_callback.epilog],
    **{
        f"replay {words}": paragraphs(command)
        for name in COMMANDS
        for words, command in commands(name, load_command(name))
        if words != "sweep"  # shows the help of `replay sweep run`
    },
}
LISTINGS = [
    "replay allocators --json", "replay workloads --json", "replay sweep --list --json",
    "replay schema workload", "replay schema config", "replay schema sweep",
]  # fmt: skip
SHOWN = [*HELP, *LISTINGS]


def descriptions(document):
    """The descriptions in a JSON document, at any depth."""
    if isinstance(document, list):
        return [found for each in document for found in descriptions(each)]
    if not isinstance(document, dict):
        return []
    here = [document["description"]] if isinstance(document.get("description"), str) else []
    return here + [found for each in document.values() for found in descriptions(each)]


@cache
def shown(name):
    """The texts of a command's help or listing, without examples."""
    texts = HELP.get(name) or descriptions(json.loads(CliRunner().invoke(app, name.split()[1:]).stdout))
    assert texts
    return [text for text in texts if not is_example(text)]


def is_example(paragraph):
    return paragraph.startswith("Example: replay ")


def sentences(text):
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z`-])", text) if part]


def test_the_words_to_avoid_are_found_across_lines_and_within_compounds():
    hits = [
        hit.partition(":")[0] for hit in found_in("It was told. It went\non, born as a player-piano; this is no trace.")
    ]
    assert hits == ["'told'", "'went on'", "'is no'", "'born'", "'player'"]
    assert found_in("There is no trace, and no longer one that is not mistold.") == []
    assert found_in(prose("a `Player`\n```sh\nplay told\n```\n")) == []


def test_an_abbreviation_or_a_decimal_point_ends_no_sentence():
    assert sentences("Interval, e.g. 10 ms. Default: none. `x` is 1.5.") == [
        "Interval, e.g. 10 ms.", "Default: none.", "`x` is 1.5.",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_command_shows_has_the_projects_words(name):
    assert [hit for text in shown(name) for hit in found_in(text)] == []


@pytest.mark.parametrize("name", SHOWN)
def test_no_sentence_that_a_command_shows_is_longer_than_25_words(name):
    parts = [sentence for text in shown(name) for sentence in sentences(text)]
    assert [sentence for sentence in parts if len(sentence.split()) > SENTENCE_WORDS_MAX] == []


@pytest.mark.parametrize("name", HELP)
def test_the_help_of_every_command_has_an_example(name):
    command = name.removesuffix(" run") if name == "replay sweep run" else name
    assert any(is_example(text) and text.startswith(f"Example: {command} ") for text in HELP[name])


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_a_page_has_the_projects_words(page):
    hits = found_in(prose(page.read_text(encoding="utf-8")))
    assert hits == []
