"""`replay report`: writes one HTML page about a run, and optionally image files and Markdown."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replay.commands import options
from replay.commands.compilation import report_compilation
from replay.commands.notes import print_notes
from replay.commands.paths import parse_folder, refuse_input_as_output
from replay.commands.run_plan import RunPlan
from replay.reports.html.chart_specs import CHARTS
from replay.support.atomic_files import new_file, new_folder_target, new_target, resolve_output
from replay.support.errors import OutputError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.analysis.report_data import ReportData

_STEPS = 5
_MOMENTS_MAX = 2000


@dataclass(frozen=True)
class _Outputs:
    """The files of a report."""

    page: Path
    png: Path | None
    svg: Path | None
    markdown: Path | None
    force: bool

    def refuse_collisions(self, source: str) -> None:
        """Raises OutputError if an output would overwrite the input, or a file that exists without `force`."""
        for path, option in ((self.page, "-o"), (self.markdown, "--markdown")):
            if path is not None:
                refuse_input_as_output(source, path, option)
                new_target(path, force=self.force)
        if self.markdown and resolve_output(self.markdown) == resolve_output(self.page):
            raise OutputError(f"--markdown {self.markdown}: is also the name of the page; choose another name")
        for folder, kind in ((self.png, "png"), (self.svg, "svg")):
            if folder and new_folder_target(folder).is_dir():
                for name in CHARTS:
                    new_target(folder / f"{name}.{kind}", force=self.force)


def report(
    source: options.Source,
    allocator: options.Allocator = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="HTML file to write.")] = Path(
        "report.html"
    ),
    overrides: options.Fixed = None,
    env: options.Env = None,
    trim_every: options.TrimEvery = None,
    seed: options.Seed = None,
    moments: Annotated[
        int | None,
        typer.Option(min=2, max=_MOMENTS_MAX, help="Moments of the heap map. Default: 200, fewer in large heaps."),
    ] = None,
    no_remedies: Annotated[
        bool,
        typer.Option("--no-remedies", help="Skip the simulations of other settings, which take half of the time."),
    ] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=parse_folder, help="Folder for the charts as PNG files.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=parse_folder, help="Folder for the charts as SVG files.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown file, e.g. for a pull request.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answers, the summary and the pins as JSON.")
    ] = False,
) -> None:
    """Write one HTML page about a run: where memory is, who pins it, what to try.

    Example: replay report app.parquet -o app.html
    """
    plan = RunPlan.of(source, allocator, overrides, env, seed=seed, sample=None, trim_every=trim_every)
    outputs = _Outputs(output, png, svg, markdown, force)
    outputs.refuse_collisions(source)
    print_notes(plan.notes(may_differ=allocator is None))
    data, written = _write(plan, outputs, moments, with_remedies=not no_remedies)
    if as_json:
        say(json.dumps(_as_json(data, written), indent=2))
        return
    from replay.reports.findings import findings

    for each in findings(data.result, data.summary, data.pins, data.remedies):
        say(f"{each.question} {each.answer}")
    say(f"\nwritten: {', '.join(printable(str(path)) for path in written)}")
    say(f"next: {_next(plan, data)}")


def _write(
    plan: RunPlan, outputs: _Outputs, moments: int | None, *, with_remedies: bool
) -> "tuple[ReportData, list[Path]]":
    """Simulates, and writes the files; returns the results and the paths."""
    from replay.analysis.report_data import gather
    from replay.reports.html.charts import charts_of
    from replay.reports.html.page import write_page
    from replay.reports.html.vega import begin_bundling, write_images
    from replay.reports.markdown_report import write_markdown
    from replay.support.progress import progress_bar

    bundling = begin_bundling()
    settings = [*(plan.overrides or ()), *(plan.env or ())]
    with report_compilation(), progress_bar("simulating", _STEPS) as progress:
        data = gather(
            plan.trace, plan.stack, chosen=plan.chosen, overrides=plan.overrides or (), env=plan.env or (),
            moments=moments, trim_every_ns=plan.trim_every_ns, with_remedies=with_remedies, progress=progress,
        )  # fmt: skip
    charts, command = charts_of(data), _command(plan)
    with new_file(outputs.page, force=outputs.force) as temporary:
        page = write_page(
            data, charts, source=plan.source, settings=settings, command=command, library=bundling.result()
        )
        temporary.write_text(page, encoding="utf-8")
    images = {
        kind: write_images(folder, charts, kind, force=outputs.force)  # type: ignore[arg-type]
        for kind, folder in (("png", outputs.png), ("svg", outputs.svg))
        if folder
    }
    written = [outputs.page, *(path for paths in images.values() for path in paths)]
    if outputs.markdown:
        shown = next(iter(images.values()), [])
        with new_file(outputs.markdown, force=outputs.force) as temporary:
            text = write_markdown(
                data, source=plan.source, settings=settings, images=_beside(outputs.markdown, shown), command=command
            )
            temporary.write_text(text, encoding="utf-8")
        written.append(outputs.markdown)
    return data, written


def _as_json(data: "ReportData", written: list[Path]) -> dict[str, Any]:
    """Returns the report as JSON."""
    from replay.reports.findings import findings
    from replay.reports.pins import pins_json

    return {
        "findings": [each._asdict() for each in findings(data.result, data.summary, data.pins, data.remedies)],
        "summary": data.summary.model_dump(mode="json"),
        "pins": pins_json(data.pins) if data.pins else None,
        "remedies": [asdict(remedy) for remedy in data.remedies],
        "written": [str(path) for path in written],
    }


def _beside(document: Path, images: list[Path]) -> list[str]:
    """Returns the paths of images as seen from a document."""
    from os.path import relpath

    return [relpath(path, document.parent) for path in images]


def _words(plan: RunPlan) -> list[str]:
    """Returns source and options that choose the simulation."""
    words = [plan.source, "-a", plan.chosen]
    for name, values in (("--set", plan.overrides), ("--env", plan.env)):
        words += [word for value in values or () for word in (name, value)]
    words += ["--seed", str(plan.seed)] if plan.seed is not None else []
    return words + (["--trim-every", plan.trim_every] if plan.trim_every else [])


def _command(plan: RunPlan) -> str:
    return printable(join(["replay", "report", *_words(plan)]))


def _next(plan: RunPlan, data: "ReportData") -> str:
    """Returns the next command: the best remedy beside the run, or the pins."""
    from replay.analysis.remedies import is_worthwhile, saving

    best = max(data.remedies, key=lambda each: saving(data.summary, each), default=None)
    if best and is_worthwhile(data.summary, best):
        return printable(join(["replay", "run", *_words(plan), *best.options]))
    if data.pins is None:
        return printable(join(["replay", "run", *_words(plan), "--full"]))
    words = _words(replace(plan, trim_every=None))
    return printable(join(["replay", "pins", *words]))
