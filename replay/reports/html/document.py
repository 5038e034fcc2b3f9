"""The frame of every HTML page: style, theme, scripts, tables.

A page needs no network: a policy in it forbids every request.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from replay import __version__
from replay.reports.html.chart_specs import Spec

_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is HTML already."""


def document(
    title: str,
    subtitle: str,
    body: Iterable[str],
    charts: Mapping[str, Spec],
    library: str,
    *,
    data: Mapping[str, str] = {},
    scripts: Sequence[str] = (),
) -> str:
    """Returns a page with the charts that elements of `body` name in `data-chart`.

    `library`: JavaScript that defines `vegaEmbed`; `data`: further elements by their names; `scripts`: names of files
    beside this module.
    """
    content = "\n".join(body)
    files = [library.replace("</script", "<\\/script"), *map(_file, ("page.js", *scripts))]
    tail = [data_element("charts", charts), *data.values(), *(f"<script>{text}</script>" for text in files)]
    end = "\n".join(tail)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="replay {__version__}">
<title>{escape(title)}</title>
<style>
{_file("page.css")}</style>
</head>
<body>
<header>
<div><h1>{escape(title)}</h1>
<p class="soft">{escape(subtitle)}</p></div>
<button id="theme" aria-label="Switch between light and dark">Theme</button>
</header>
<main>
{content}
</main>
{end}
</body>
</html>
"""


def data_element(name: str, value: Any) -> str:
    """Returns an element with a value as JSON."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def answers(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns questions with their answers."""
    rows = "".join(f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>\n" for question, answer in pairs)
    return f'<dl class="answers">\n{rows}</dl>'


def cards(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns names with their values, as large figures."""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in pairs)
    return f'<ul class="cards">{items}</ul>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, bold: int | None = None) -> str:
    """Returns a table; `bold` is the number of a row that stands out."""
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in headings)
    body = "".join(
        f"<tr{' class=strong' if number == bold else ''}>{''.join(map(_cell, row))}</tr>\n"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def details(title: str, content: str) -> str:
    """Returns content that is shown on demand."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def figure(name: str, label: str, caption: str = "", *, title: str = "", attributes: str = "") -> str:
    """Returns the place of a chart. `caption` is HTML."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    chart = f'<div data-chart="{name}"{attributes} role="img" aria-label="{escape(label)}"></div>'
    return f'<figure class="panel">{heading}{chart}{below}</figure>'


def _cell(text: str) -> str:
    return text if isinstance(text, Html) else f"<td>{escape(text)}</td>"


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
