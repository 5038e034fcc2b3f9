"""Vega, Vega-Lite and Vega-Embed: as JavaScript for a page, and as a renderer of image files."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import vl_convert

from replay.reports.html.chart_specs import Spec
from replay.support.atomic_files import new_file

ImageFormat = Literal["png", "svg"]
_EXPORT = "window.vegaEmbed = vegaEmbed;"
_PIXELS_A_POINT = 2.0
_CONFIG = {
    "background": "#ffffff",
    "font": "DejaVu Sans, Helvetica, Arial, sans-serif",
    "padding": 14,
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e3e4e1"},
    "text": {"fontSize": 12},
}


def begin_bundling() -> "Future[str]":
    """Begins to make the JavaScript that defines `vegaEmbed`, which takes a second, in a thread."""
    with_thread = ThreadPoolExecutor(1)
    bundling = with_thread.submit(vl_convert.javascript_bundle, _EXPORT)
    with_thread.shutdown(wait=False)
    return bundling


def write_images(folder: Path, charts: dict[str, Spec], kind: ImageFormat, *, force: bool = False) -> list[Path]:
    """Writes an image file for each chart into a folder, which is created if it is missing; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, spec in charts.items():
        path = folder / f"{name}.{kind}"
        with new_file(path, force=force) as temporary:
            if kind == "png":
                temporary.write_bytes(vl_convert.vegalite_to_png(spec, scale=_PIXELS_A_POINT, config=_CONFIG))
            else:
                temporary.write_text(vl_convert.vegalite_to_svg(spec, config=_CONFIG), encoding="utf-8")
        written.append(path)
    return written
