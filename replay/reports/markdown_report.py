"""A report about one run as Markdown, for a pull request or a wiki."""

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from replay.analysis.pins import Pins
from replay.analysis.report_data import ReportData
from replay.reports.claims import claims, sentences
from replay.reports.findings import findings
from replay.reports.pins import short_name
from replay.support.names import printable
from replay.support.units import format_size, format_time

_ROWS = 8
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def escaped(text: str) -> str:
    """Returns text without effect of its characters on Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _code(text: str) -> str:
    """Returns text as a code span, between more backticks than it has."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{printable(text)}{space}{fence}"


def write_markdown(
    data: ReportData, *, source: str, settings: Sequence[str], images: Iterable[str] = (), command: str
) -> str:
    """Returns the report. `images`: paths of image files of charts; `command`: what makes the report again."""
    return "\n".join(_lines(data, source, settings, images, command)) + "\n"


def _lines(
    data: ReportData, source: str, settings: Sequence[str], images: Iterable[str], command: str
) -> Iterator[str]:
    summary, stack = data.summary, data.result.config
    changed = f" with {', '.join(settings)}" if settings else ""
    yield f"## Memory of {escaped(source)}"
    yield ""
    events = f"{summary.events:,} events in {format_time(summary.duration_ns)}"
    yield f"Simulated with {escaped(stack.name + changed)}: {events}."
    yield ""
    for each in findings(data.result, summary, data.pins, data.remedies):
        yield f"- **{each.question}** {escaped(each.answer)}"
    yield ""
    for path in images:
        yield f"![{escaped(path)}]({quote(path)})"
    yield from _table(
        ["", "at peak", "mean", "at end"],
        [
            [name, *(format_size(getattr(summary, f"{level}_{moment}")) for moment in ("at_peak", "mean", "end"))]
            for name, level in (("resident", "resident_bytes"), ("mapped", "mapped_bytes"), ("live", "requested_bytes"))
        ],
    )
    if data.pins is not None and data.pins.resident_bytes:
        pins = data.pins
        yield from _pins(pins.by_site, "call site") if pins.has_sites else _pins(pins.by_size_class, "size class")
    if data.remedies:
        now = ("as simulated", summary.resident_bytes_mean, summary.resident_bytes_end, summary.resident_bytes_peak)
        rows = [
            now,
            *(
                (each.name, each.resident_bytes_mean, each.resident_bytes_end, each.resident_bytes_peak)
                for each in data.remedies
            ),
        ]
        yield from _table(
            ["setting", "mean", "at end", "peak"], [[name, *map(format_size, sizes)] for name, *sizes in rows]
        )
    for sentence in sentences(claims(data.result.metadata, stack, summary)):
        yield f"- {escaped(sentence)}"
    yield ""
    yield f"Made by {_code(command)}."


def _pins(pins: Pins, name: str) -> Iterator[str]:
    groups = [group for group in pins.groups if group.pinned_bytes or group.shared_bytes][:_ROWS]
    rows = [
        [short_name(group.name), format_size(group.pinned_bytes), format_size(group.shared_bytes), f"{group.blocks:,}"]
        for group in groups
    ]
    yield from _table([f"pinned by {name}", "alone", "with others", "blocks"], rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' + ' ---: |' * (len(headings) - 1)}"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"
    yield ""
