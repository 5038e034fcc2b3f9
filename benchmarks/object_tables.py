"""Measures sizes, growth and free lists of objects in all interpreters at hand, and prints them as Markdown.

    python benchmarks/object_tables.py > docs/object-tables.md

The tables of docs/object-tables.md are its output. `tests/test_object_tables.py` compares them, and the rules of
`replay.objects`, with the interpreters of the machine.
"""

from replay.verification.object_oracles import find_object_oracles
from replay.verification.object_tables import ADDED, measure

HEAD = """\
# Measured tables of objects

`python benchmarks/object_tables.py` measured these tables on the interpreters that head the columns, and wrote this
page. All are 64-bit builds for Linux on x86-64. A number is the requested bytes of one call of Python's allocators.

The rules of object programs ([objects.md](objects.md)) follow them. A test compares both with the interpreters of the
machine.
"""
TITLES = {
    "sizes": (
        "Sizes",
        "The requests for one object when all free lists are empty, with those of intermediate objects.",
        "object",
    ),
    "growth": (
        "Growth",
        f"`5: 64` means: the fifth of {ADDED} additions requested 64 bytes for the table or the items.",
        "operation",
    ),
    "kept": ("Free lists", "How many freed objects of a type are kept for the next ones.", "type"),
}


def main() -> None:
    found = {version: measure(oracle) for version, oracle in find_object_oracles().items()}
    print(HEAD)
    for name, (title, text, first) in TITLES.items():
        print(f"## {title}\n\n{text}\n")
        if name == "growth":
            _print_lists(found)
            continue
        print(f"| {first} | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        for row in next(iter(found.values()))[name]:
            print(f"| {row} | {' | '.join(tables[name][row] for tables in found.values())} |")
        print()


def _print_lists(found: dict[str, dict[str, dict[str, str]]]) -> None:
    """Prints long values once for all interpreters that have them."""
    print("| operation | interpreters | additions with a request |\n|---|---|---|")
    for row in next(iter(found.values()))["growth"]:
        for value in dict.fromkeys(tables["growth"][row] for tables in found.values()):
            versions = ", ".join(version for version, tables in found.items() if tables["growth"][row] == value)
            print(f"| {row} | {versions} | {value} |")
    print()


if __name__ == "__main__":
    main()
