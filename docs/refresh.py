"""Writes tables and the output of today's commands into README.md and docs/*.md, and draws the README's picture again.

    .venv/bin/python docs/refresh.py               # all pages
    .venv/bin/python docs/refresh.py README.md     # one page

Output that differs in wall-clock times only stays as it is.
"""

import sys
import tempfile
from pathlib import Path

from pages import PAGES, ROOT, comparable, run_page
from pictures import terminal
from tables import with_tables


def refreshed(text: str, folder: Path) -> str:
    """The page with the output of its commands."""
    edits = []
    for block, command, done in run_page(text, folder):
        print("$", command.text.splitlines()[0], flush=True)
        if done.returncode != command.exit_code:
            sys.exit(f"exit code {done.returncode}, expected {command.exit_code}\n{done.stdout}{done.stderr}")
        if command.shown and comparable(done.stdout, block) != comparable(command.shown, block):
            shown = done.stdout.replace(sys.base_prefix, "/usr").replace(
                str(folder), "/srv"
            )  # not this machine's paths
            edits.append((text.index(command.shown, block.start), command.shown, shown))
    for start, old, new in reversed(edits):
        text = text[:start] + new + text[start + len(old) :]
    return text


if __name__ == "__main__":
    for page in [ROOT / name for name in sys.argv[1:]] or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            text = with_tables(page.name, page.read_text(encoding="utf-8"))
            page.write_text(refreshed(text, Path(folder)), encoding="utf-8")
    terminal.PICTURE.write_text(terminal.picture(), encoding="utf-8")
