"""Draws the metrics of a history over commits, as HTML or PNG."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from replay.gates.history import Step
from replay.reports.chart_parts import import_altair
from replay.support.atomic_files import new_file
from replay.support.errors import ReplayError

_WIDTH, _HEIGHT = 760, 220


def write_chart(
    path: Path, frame: pl.DataFrame, metrics: Sequence[str], steps: Sequence[Step], *, force: bool = False
) -> None:
    """Writes a panel for each metric, with a line for each case and a mark at each step."""
    altair = import_altair()
    if path.suffix not in (".html", ".png"):
        raise ReplayError(f"--chart {path}: the name must end with .html or .png")
    if not frame.height:
        raise ReplayError("no chart: the history has no rows")
    panels = []
    order = frame["commit"].str.slice(0, 10).unique(maintain_order=True).to_list()
    stepped = {(step.case, step.metric, step.commit) for step in steps}
    for metric in metrics:
        divisor, unit = (2**20, ", MiB") if "_bytes" in metric else (1, "")
        rows = frame.select(
            pl.col("commit").str.slice(0, 10).alias("short"),
            "commit",
            "case",
            (pl.col(metric) / divisor).alias("value"),
        ).drop_nulls()
        marked = pl.Series(
            [(case, metric, commit) in stepped for case, commit in rows.select("case", "commit").iter_rows()]
        )
        rows = rows.with_columns(step=marked)
        base = altair.Chart(rows).encode(
            x=altair.X("short:O", sort=order, title=None, axis=altair.Axis(labelAngle=-60)),
            y=altair.Y("value:Q", title=metric + unit, scale=altair.Scale(zero=False, nice=True)),
            color=altair.Color("case:N", legend=altair.Legend(orient="top"), title=None),
            tooltip=["case", "commit", "value"],
        )
        marks = base.transform_filter("datum.step").mark_point(size=160, strokeWidth=2, shape="diamond")
        layers = altair.layer(base.mark_line(interpolate="step-after"), base.mark_circle(size=40, opacity=1), marks)
        panels.append(layers.properties(width=_WIDTH, height=_HEIGHT))
    page = altair.vconcat(*panels).configure_view(stroke=None)
    options = {"format": "html", "inline": True} if path.suffix == ".html" else {"format": "png", "scale_factor": 2.0}
    with new_file(path, force=force) as temporary:
        page.save(str(temporary), **options)
