"""Reads the fenced blocks of README.md and docs/*.md, and runs their commands.

A page is run in an empty folder, block by block in the order of the page:

- A block whose first line is a comment with nothing but a file name (`# job.py`) is written to that file.
- In a block of `sh`, each line is a command. In a block of `console`, each line after `$ ` is one, and the lines below
  it are its whole output to standard output. A command without such lines may print anything.
- Other blocks of `python` are run as programs.
- A command ends with exit code 0, or with N if it ends in the comment `# exit code N`.
- `(not run: REASON)` after the language of a block: none of this is done.
- `(figures vary: REASON)`: figures and paths of its output are not compared.

`docs/refresh.py` writes the output of today's commands into the pages; `tests/test_documented_commands.py` compares it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(?P<language>\w*)(?P<note>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:#|//) ([\w./-]+\.\w+)\n")
_EXIT_CODE = re.compile(r"# exit code (\d+)")
_WALL_TIME = re.compile(r" in [\d.]+ s(, compiling included|, [\d,]+ events/s)?$", re.MULTILINE)
_PATH = re.compile(r"\S*(/|\.py:\d)\S*")
_FIGURE = re.compile(r"[+-]?\d[\d,.]*( (B|KiB|MiB|GiB|ns|µs|ms|s|%)(?!\w))?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with its place in the page's text."""

    language: str
    note: str
    body: str
    start: int

    @property
    def reason_not_to_run(self) -> str:
        return self._reason("not run")

    @property
    def figures_vary(self) -> bool:
        return bool(self._reason("figures vary"))

    @property
    def file(self) -> str:
        named = _FILE.match(self.body)
        return named[1] if named else ""

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "console", "python") and not self.file and not self.reason_not_to_run

    def _reason(self, kind: str) -> str:
        found = re.fullmatch(rf" \({kind}: (.+)\)", self.note)
        return found[1] if found else ""


@dataclass(frozen=True)
class Command:
    """A command, the exit code that the page expects, and the output that it shows ("" if none)."""

    text: str
    shown: str

    @property
    def exit_code(self) -> int:
        stated = _EXIT_CODE.search(self.text)
        return int(stated[1]) if stated else 0


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(m["language"], m["note"], m["body"], m.start("body")) for m in _BLOCK.finditer(text)]


def commands(block: Block) -> list[Command]:
    """The commands of a block; of a block of Python, one that runs it."""
    if block.language == "python":
        return [Command(block.body, "")]
    found: list[list[str]] = []
    for line in block.body.splitlines(keepends=True):
        if found and found[-1][0].endswith("\\\n") and len(found[-1]) == 1:
            found[-1][0] += line
        elif block.language == "console" and not line.startswith("$ "):
            found[-1].append(line)
        elif line.strip() and not line.startswith("#"):
            found.append([line])
    return [Command(first.removeprefix("$ ").rstrip("\n"), "".join(rest)) for first, *rest in found]


def comparable(output: str, block: Block) -> str:
    """Output without wall-clock times. If the page says that figures vary, also without figures, paths and layout."""
    output = _WALL_TIME.sub(" in N s", output)
    if block.figures_vary:
        output = " ".join(_FIGURE.sub("N", _PATH.sub("", output)).split())
    return output


def run_page(
    text: str, folder: Path, programs: Path = Path(sys.executable).parent
) -> Iterator[tuple[Block, Command, subprocess.CompletedProcess[str]]]:
    """Runs a page's commands in an empty folder, and yields each with what came of it. `programs` has `replay`."""
    for block in blocks(text):
        if block.file and not block.reason_not_to_run:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")
        if block.is_run:
            for command in commands(block):
                yield block, command, _run(block, command, folder, programs)


def _run(block: Block, command: Command, folder: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c"] if block.language == "python" else ["bash", "-c"]
    return subprocess.run(
        [*words, command.text], cwd=folder, env=_environment(programs), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def _environment(programs: Path) -> dict[str, str]:
    """That of a user at a terminal: replay in the path, and no trace of pytest or a CI service."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.match(r"CI$|COLUMNS$|GITHUB_|GITLAB_|PYTEST_|MALLOC_|GLIBC_|PYTHON(?!PATH)", name)
    }
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path}
