"""Draws the first console block of the README as a terminal: an SVG that uses no font or file from elsewhere.

`docs/refresh.py` calls it after it has run the commands.
"""

from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from pages import ROOT, blocks

PICTURE = Path(__file__).with_name("run.svg")
BACKGROUND, TEXT, PROMPT = "#0d1117", "#e6edf3", "#7ee787"
FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
CHARACTER, LINE, MARGIN = 8.4, 16.3, 16  # pixels, of common fixed fonts at 14 px: bars of neighbouring lines touch


def shown_lines() -> list[str]:
    """The lines of the README's first console block: a command and its output."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    return next(block.body for block in blocks(page) if block.language == "console").splitlines()


def picture() -> str:
    """The SVG. `textLength` keeps columns aligned in whatever fixed font the reader has."""
    lines = shown_lines()
    width = round(max(map(len, lines)) * CHARACTER + 2 * MARGIN)
    height = round(len(lines) * LINE + 2 * MARGIN)
    drawn = "\n".join(_line(text, MARGIN + (row + 0.75) * LINE) for row, text in enumerate(lines) if text)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<style>
text {{ font: 14px {FONTS}; fill: {TEXT}; white-space: pre }}
.command {{ fill: {PROMPT}; font-weight: bold }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}" stroke="#6e7681"/>
{drawn}
</svg>
"""


def _line(text: str, y: float) -> str:
    style = ' class="command"' if text.startswith("$ ") else ""
    length = f"{len(text) * CHARACTER:g}"
    return f'<text{style} x="{MARGIN}" y="{y:g}" textLength="{length}" xml:space="preserve">{escape(text)}</text>'


def lines_of(svg: str) -> list[str]:
    """The lines of text in a picture, without empty ones."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
