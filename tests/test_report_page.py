"""The page of `replay report` in a real browser: it shows the figures that Python has, and does what its controls say.

With REPLAY_SCREENSHOTS=FOLDER in the environment, screenshots of the page are written there.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import numpy as np
import pytest
from test_pins import Script

import replay
from replay.analysis.heap_history import CLASS_LIMITS
from replay.analysis.report_data import gather
from replay.config import load_config
from replay.reports.chart_parts import BEST, IN_DARK, TEXT
from replay.reports.charts import write_charts
from replay.reports.findings import findings
from replay.reports.html.charts import charts_of
from replay.reports.html.page import write_page
from replay.reports.html.vega import begin_bundling
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.support.units import format_size
from replay.trace import Domain, Site

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = which("chromium")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
EVIL = "</script><script>window.alerted = 1</script><img src=x onerror='window.alerted = 1'>"
SITES = (Site("burst", "app.py", 10), Site("remember", "app.py", 20), Site(EVIL, "app.py", 30))
STACK = "cpython-3.8"
WIDE, NARROW = (1400, 900), (390, 844)
SCREENSHOTS = os.environ.get("REPLAY_SCREENSHOTS")


def program() -> Script:
    """A program that fills four arenas, frees all but one block of each, and allocates more of another site."""
    script, burst = Script(), []
    for arena in range(4):
        burst += [script.new(64, 0) for _ in range(3900)]  # 256 KiB
        script.new(64, 1)
        if arena == 1:
            script.mark(0)
    script.new(300_000, 2, Domain.RAW)
    script.free(*burst)
    script.mark(1)
    for _ in range(300):
        script.new(200, 2)
    return script


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A page, the data that it shows, and the live blocks at the end."""
    trace, stack = program().trace("half", "dropped", sites=SITES), load_config(STACK)
    data = gather(trace, stack, chosen=STACK, moments=24)
    path = tmp_path_factory.mktemp("page") / "report.html"
    library = begin_bundling().result()
    source = EVIL
    text = write_page(data, charts_of(data), source=source, settings=[EVIL], command="replay report x", library=library)
    path.write_text(text, encoding="utf-8")
    blocks: list[np.ndarray] = []
    run(trace, stack, snapshots=["end"], sink=lambda each: blocks.append(each.blocks()), with_blocks=True)
    return SimpleNamespace(path=path, data=data, heap=data.heap, blocks=blocks[0], last=len(data.heap.frames) - 1)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, made) -> Iterator[Callable[..., object]]:
    """Opens the page in a new window; fails at the end if it had errors or requested anything but itself."""
    contexts, problems, requests = [], [], []

    def open_page(size=WIDE, *, scheme="light", ready=True, **options):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(made.path.as_uri())
        if ready:
            page.wait_for_selector("#map-view[data-ready=yes]")
            page.wait_for_function("[...document.querySelectorAll('[data-chart]')].every((each) => each.dataset.ready)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == [], problems
    assert [url for url in requests if not url.startswith("data:")] == [made.path.as_uri()] * len(contexts)


def pixel(page, cell: int) -> list[int]:
    """The colour of the middle of a cell."""
    return page.evaluate(
        """(cell) => {
          const [x, y] = heapMap.place(cell), copy = document.createElement("canvas");
          const context = copy.getContext("2d", {willReadFrequently: true});
          context.drawImage(document.getElementById("map-canvas"), x, y, 1, 1, 0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data];
        }""",
        cell,
    )


def image(page) -> str:
    return page.evaluate("document.getElementById('map-canvas').toDataURL()")


def point_at(page, cell: int, *, click: bool = False) -> None:
    """Moves the mouse to a cell; also clicks there."""
    x, y = page.evaluate("(cell) => heapMap.place(cell)", cell)
    action = page.locator("#map-overlay").click if click else page.locator("#map-overlay").hover
    action(position={"x": x, "y": y})


def cells_with(made, condition) -> list[int]:
    """Numbers of cells at the end for whose row a condition holds."""
    return [number for number, row in enumerate(made.heap.at(made.last).view(np.recarray)) if condition(row)]


def overflow(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_page_fits_the_window_in_both_themes(opened, size, scheme):
    page = opened(size, scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert overflow(page) <= 0
    charts = page.locator("[data-chart]")
    assert charts.count() == 4
    for number in range(charts.count()):
        assert charts.nth(number).locator("svg").count() == 1
    for details in page.locator("summary").all():
        details.click()
    assert overflow(page) <= 0
    assert page.evaluate("window.alerted") is None
    if SCREENSHOTS:
        folder = Path(SCREENSHOTS)
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"report-{size[0]}-{scheme}.png", full_page=True)


def test_the_policy_of_the_page_forbids_requests(browser, made):
    with browser.new_context() as context:
        page, asked, failed = context.new_page(), [], []
        page.goto(made.path.as_uri())
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
        page.evaluate("window.refused = []")
        page.evaluate("addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective))")
        fetched = "() => fetch('http://localhost:9/').then(() => 'answered', () => 'failed')"
        assert page.evaluate(fetched) == "failed"
        page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://localhost:9/x.png'}))")
        page.wait_for_function("refused.length === 2")
        assert sorted(page.evaluate("refused")) == ["connect-src", "img-src"]
        assert failed == [(url, "csp") for url in asked]


def test_the_cells_of_the_page_are_those_of_the_map_at_every_moment(opened, made):
    page = opened()
    for number in (0, made.last, 7, 8, made.last // 2, made.last - 1):
        page.evaluate("(number) => heapMap.seek(number)", number)
        rows = page.evaluate(f"Array.from({{length: {made.heap.cells}}}, (_, cell) => heapMap.cell(cell))")
        expected = made.heap.at(number)
        assert rows == [dict(zip(expected.dtype.names, row, strict=True)) for row in expected.tolist()]


def test_the_slider_changes_time_and_picture(opened, made):
    page = opened()
    slider, time = page.locator("#map-slider"), page.locator("#map-time")
    assert (slider.get_attribute("max"), slider.input_value()) == (str(made.last), str(made.last))
    at_end, end = image(page), time.inner_text()
    assert "end" in end
    box = slider.bounding_box()
    slider.click(position={"x": box["width"] * 0.3, "y": box["height"] / 2})
    moved = int(slider.input_value())
    assert 0 < moved < made.last
    assert time.inner_text() != end
    assert image(page) != at_end
    page.keyboard.press("ArrowLeft")
    assert int(slider.input_value()) == moved - 1
    page.keyboard.press("Home")
    assert slider.input_value() == "0"
    assert slider.get_attribute("aria-valuetext") == time.inner_text()
    page.keyboard.press("End")
    assert image(page) == at_end
    assert time.inner_text() == end


def test_the_buttons_lead_to_peak_and_end(opened, made):
    page = opened()
    labels = [frame.label for frame in made.heap.frames]
    for text, label in (("Peak", "peak"), ("End", "end")):
        page.get_by_role("button", name=text, exact=True).click()
        assert page.locator("#map-slider").input_value() == str(labels.index(label))


def test_pointing_at_a_cell_shows_its_figures(opened, made):
    page, rows = opened(), made.heap.at(made.last).view(np.recarray)
    full = cells_with(made, lambda row: row.blocks == 19)[0]
    pinned = cells_with(made, lambda row: row.blocks == 1 and row.live_bytes == 64)[0]
    free = cells_with(made, lambda row: row.mapped_bytes and not row.live_bytes)[0]
    for cell in (full, pinned, free):
        point_at(page, cell)
        row, text = rows[cell], page.locator("#map-info").inner_text()
        live, mapped, out, resident = (
            format_size(int(row[name])) for name in ("live_bytes", "mapped_bytes", "free_bytes", "resident_bytes")
        )
        blocks = "1 block" if row.blocks == 1 else f"{row.blocks} blocks"
        size = f", of {format_size(int(CLASS_LIMITS[row.size_class]))}" if row.live_bytes else ""
        share = f"{100 * row.live_bytes / row.mapped_bytes:.0f} %"
        assert f"{blocks}{size}: {live} of {mapped} live ({share}), {out} free, {resident} resident." in text
        assert f"Cell {cell % 64 + 1}, {hex(made.heap.addresses()[cell])}" in text
        assert ("app.py" in text.split("Cell")[1]) == bool(row.live_bytes)
    page.mouse.move(5, 5)
    assert "Point at a cell" in page.locator("#map-info").inner_text()


def test_pointing_shows_call_site_and_age(opened, made):
    page = opened()
    pinned = cells_with(made, lambda row: row.blocks == 1 and row.live_bytes == 64)
    row = made.heap.at(made.last)[pinned[0]]
    point_at(page, pinned[0])
    text = page.locator("#map-info").inner_text()
    age_ms = (made.heap.frames[-1].time_ns - int(row["oldest"]) * made.heap.unit_ns) / 1e6
    assert f"Most bytes from {made.data.sites[row['site']]}. Oldest block: {age_ms:.2f} ms old." in text
    assert made.data.sites[row["site"]] == "remember (app.py:20)"
    assert "pins this arena" in text or "pin this arena" in text


def test_a_click_lists_the_blocks_of_the_cell(opened, made):
    page, frame = opened(), made.heap.frames[-1]
    for count in (19, 1):
        cell = cells_with(made, lambda row, count=count: row.blocks == count)[0]
        point_at(page, cell, click=True)
        start = int(made.heap.addresses()[cell])
        inside = made.blocks[(made.blocks["address"] >= start) & (made.blocks["address"] < start + 4096)]
        assert len(inside) == count
        listed = [line.split("\t") for line in page.locator("#map-blocks tbody tr").all_inner_texts()]
        assert [words[0] for words in listed] == [hex(address) for address in inside["address"].tolist()]
        assert [words[1] for words in listed] == [format_size(size) for size in inside["requested_bytes"].tolist()]
        assert [words[2] for words in listed] == [format_size(size) for size in inside["bytes"].tolist()]
        ages = [(frame.time_ns - each) / 1e6 for each in inside["allocated_ns"].tolist()]
        assert [words[3] for words in listed] == [age_text(age) for age in ages]
        assert [words[5] for words in listed] == [site_name(site) for site in inside["site"].tolist()]
    page.evaluate("heapMap.seek(3)")
    page.locator("#map-slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#map-blocks tbody tr").count() == 0
    assert "listed at the peak" in page.locator("#map-blocks").inner_text()


def age_text(milliseconds: float) -> str:
    return f"{milliseconds:.2f} ms" if milliseconds >= 1 else f"{milliseconds * 1000:.0f} µs"


def site_name(site: int) -> str:
    return f"{SITES[site].function} (app.py:{SITES[site].line})"


def test_arrow_keys_choose_cells_and_enter_lists_their_blocks(opened, made):
    page = opened()
    page.locator("#map-view").focus()
    page.keyboard.press("ArrowRight")
    assert f"Cell 1, {hex(made.heap.addresses()[0])}" in page.locator("#map-info").inner_text()
    for key, cell in (("ArrowRight", 1), ("ArrowDown", 65), ("ArrowLeft", 64), ("ArrowUp", 0)):
        page.keyboard.press(key)
        assert hex(made.heap.addresses()[cell]) in page.locator("#map-info h4").nth(1).inner_text()
    page.keyboard.press(",")
    assert page.locator("#map-slider").input_value() == str(made.last - 1)


def test_colours_follow_the_mode(opened, made):
    page = opened()
    assert page.locator("#map-mode option").evaluate_all("(all) => all.map((each) => each.value)") == [
        "occupancy", "size_class", "age", "site",
    ]  # fmt: skip
    full, pinned, free = (
        cells_with(made, condition)[0]
        for condition in (
            lambda row: row.blocks == 19,
            lambda row: row.blocks == 1 and row.live_bytes == 64,
            lambda row: row.mapped_bytes and not row.live_bytes,
        )
    )
    legends, frees = set(), set()
    for mode in ("occupancy", "size_class", "age", "site"):
        page.locator("#map-mode").select_option(mode)
        colours = [pixel(page, cell) for cell in (full, pinned, free)]
        assert len({tuple(colour) for colour in colours}) == 3, mode
        frees.add(tuple(colours[2]))
        legends.add(page.locator("#map-legend").inner_text())
    assert len(frees) == 1
    assert len(legends) == 4
    of_sites = {
        tuple(pixel(page, cell)) for cell in cells_with(made, lambda row: row.blocks == 1 and row.live_bytes == 64)
    }
    assert len(of_sites) == 1


def test_a_search_dims_the_cells_of_other_call_sites(opened, made):
    page = opened()
    remembered = cells_with(made, lambda row: row.blocks == 1 and row.live_bytes == 64)[0]
    other = cells_with(made, lambda row: row.blocks == 19)[0]
    before = [pixel(page, cell) for cell in (remembered, other)]
    page.locator("#map-search").fill("REMEMBER")
    assert page.locator("#map-found").inner_text() == "1 call site, 0 types"
    after = [pixel(page, cell) for cell in (remembered, other)]
    assert after[0] == before[0]
    assert after[1] != before[1]
    page.locator("#map-search").fill("nothing like it")
    assert page.locator("#map-found").inner_text() == "0 call sites, 0 types"
    assert pixel(page, remembered) != before[0]
    page.locator("#map-search").fill("")
    assert [pixel(page, cell) for cell in (remembered, other)] == before


def test_play_runs_to_the_end(opened, made):
    page = opened()
    play = page.locator("#map-play")
    play.click()
    assert play.inner_text() == "Pause"
    page.wait_for_function("Number(document.getElementById('map-slider').value) > 2")
    play.click()
    assert play.inner_text() == "Play"
    assert 2 < int(page.locator("#map-slider").input_value()) < made.last
    page.evaluate("(frame) => heapMap.seek(frame)", made.last - 2)
    play.click()
    page.wait_for_function("document.getElementById('map-play').textContent === 'Play'")
    assert page.locator("#map-slider").input_value() == str(made.last)


def test_zoom_enlarges_the_cells(opened, made):
    page = opened()
    width = page.evaluate("heapMap.place(1)[0] - heapMap.place(0)[0]")
    page.get_by_role("button", name="Zoom in").click()
    assert page.evaluate("heapMap.place(1)[0] - heapMap.place(0)[0]") > width
    assert overflow(page) <= 0
    page.get_by_role("button", name="Zoom out").click()
    assert page.evaluate("heapMap.place(1)[0] - heapMap.place(0)[0]") == width


def test_the_theme_can_be_switched(opened, made):
    page = opened()
    cell = cells_with(made, lambda row: row.mapped_bytes and not row.live_bytes)[0]
    light, ground = pixel(page, cell), "getComputedStyle(document.documentElement).backgroundColor"
    bright = page.evaluate(ground)
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert pixel(page, cell) != light
    assert page.evaluate(ground) != bright
    page.locator("#theme").click()
    assert pixel(page, cell) == light


def test_without_javascript_answers_and_tables_are_there(opened, made):
    page = opened(NARROW, ready=False, java_script_enabled=False)
    answers = page.locator("dl.answers dd").all_inner_texts()
    expected = findings(made.data.result, made.data.summary, made.data.pins, made.data.remedies)
    assert answers == [re.sub(" +", " ", each.answer) for each in expected]
    assert page.locator("table").count() >= 7
    assert "remember (app.py:20)" in page.locator("table").nth(2).text_content()
    assert EVIL in page.locator("h1").inner_text()
    regions = page.locator("details", has_text="Regions at the end")
    regions.locator("summary").click()
    assert regions.locator("tbody tr").first.is_visible()


def test_on_paper_tables_are_open_and_controls_are_hidden(opened):
    page = opened()
    page.emulate_media(media="print")
    assert not any(page.locator(name).is_visible() for name in ("#map-play", "#map-slider", "#map-info", "#theme"))
    assert page.locator("#map-canvas").is_visible()
    for table in page.locator("details table").all():
        assert table.bounding_box()["height"] > 20
        assert table.evaluate("(each) => each.checkVisibility({contentVisibilityAuto: true})")


def test_charts_of_a_sweep_follow_the_theme_and_stay_within_a_narrow_page(browser, tmp_path):
    write_trace(program().trace("half", "dropped", sites=SITES), tmp_path / "trace.parquet")
    vary = {"glibc.top_pad": [0, 1 << 20], "glibc.mmap_threshold": [65_536, 1 << 20]}
    results = replay.sweep({"sources": [str(tmp_path / "trace.parquet")], "vary": vary})
    page_path = write_charts(tmp_path, results, ["heap_bytes_peak", "syscalls.brk"])[0]
    with browser.new_context(viewport={"width": NARROW[0], "height": NARROW[1]}, color_scheme="dark") as context:
        page = context.new_page()
        page.goto(page_path.as_uri())
        page.wait_for_function("[...document.querySelectorAll('[data-chart]')].every((each) => each.dataset.ready)")
        assert page.locator("[data-chart]").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") == NARROW[0]
        fills = "[...document.querySelectorAll('[data-chart] svg [fill]')].map((each) => each.getAttribute('fill'))"
        dark = set(page.evaluate(fills))
        assert not dark & {"white", *IN_DARK}
        assert {IN_DARK[BEST], IN_DARK[TEXT]} <= dark
        page.locator("#theme").click()
        page.wait_for_function(f"{fills}.includes('{TEXT}')")
        light = set(page.evaluate(fills))
        assert BEST in light
        assert not light & {*IN_DARK.values()}
