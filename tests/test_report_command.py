"""`replay report` from its arguments to its files, mistakes included."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from histories import History
from test_pins import Script, pinned_heap

from replay.reports.html.chart_specs import CHARTS
from replay.reports.markdown_report import escaped
from replay.sources.parquet import write_trace
from replay.trace import Site

SIMPLE = "<script>alert(1)</script>"
CLOSING = "</script><img src=x onerror=alert(1)>"
MARKDOWN = "`a`|*b*_c_[d](http://e)~f~&lt;#g"
STACK = ("-a", "cpython-3.12")


class Elements(HTMLParser):
    """The elements of a page, and the text of those that are neither scripts nor style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self._hidden = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._hidden else data


@pytest.fixture
def trace(tmp_path, monkeypatch) -> Path:
    """A trace with call sites and a phase, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "app.parquet"
    write_trace(pinned_heap().trace(), path)
    return path


def written_by(out: str) -> list[str]:
    """The files that a command says it wrote."""
    (line,) = (each for each in out.splitlines() if each.startswith("written: "))
    return line.removeprefix("written: ").split(", ")


def test_the_page_is_written_and_the_findings_are_printed(replay, trace):
    code, out, _ = replay("report", trace.name, *STACK)
    assert code == 0
    assert written_by(out) == ["report.html"]
    questions = [line.split("?")[0] for line in out.splitlines() if "?" in line]
    assert questions == ["How much memory", "Why", "What pins it", "What to try"]
    found = Elements(Path("report.html").read_text())
    for line in out.splitlines()[:4]:
        assert line.split("? ", 1)[1] in found.text
    assert {"svg", "canvas", "table", "script"} - set(found.tags) == {"svg"}  # charts are drawn by JavaScript


@pytest.mark.parametrize("options", [(), ("--no-remedies",), ("--set", "glibc.arena_max=1"), ("--trim-every", "50us")])
def test_the_next_command_runs(replay, trace, options):
    code, out, _ = replay("report", trace.name, *STACK, *options)
    assert code == 0
    (command,) = re.findall(r"^next: replay (.*)$", out, re.MULTILINE)
    words = shlex.split(command)
    assert words[0] == ("pins" if "--no-remedies" in options else words[0])
    assert replay(*words)[0] == 0


def test_the_command_in_the_page_makes_it_again(replay, trace):
    options = [
        "-a",
        "cpython-3.8",
        "--set",
        "glibc.arena_max=1",
        "--env",
        "MALLOC_TOP_PAD_=65536",
        "--trim-every",
        "1ms",
    ]
    assert replay("report", trace.name, *options)[0] == 0
    first = Path("report.html").read_text()
    (command,) = re.findall(r"<pre>replay (.*)</pre>", first)
    assert replay(*shlex.split(command), "--force")[0] == 0
    assert Path("report.html").read_text() == first


def test_an_existing_page_is_refused_without_force(replay, refused, trace):
    Path("report.html").write_text("mine")
    assert "report.html: already exists" in refused("report", trace.name, *STACK)
    assert Path("report.html").read_text() == "mine"
    assert replay("report", trace.name, *STACK, "--no-remedies", "--force")[0] == 0
    assert Path("report.html").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "app.parquet"), "-o app.parquet: is the input file"),
        (("--markdown", "app.parquet"), "--markdown app.parquet: is the input file"),
        (("-o", "missing/report.html"), "does not exist; make it first"),
        (("--markdown", "missing/report.md"), "does not exist; make it first"),
        (("-o", "a.html", "--markdown", "a.html"), "is also the name of the page"),
        (("--png", ""), "the name of the folder is missing"),
        (("--png", "app.parquet"), "is not a folder"),
        (("--svg", "missing/folder"), "does not exist; make it first"),
        (("--moments", "1"), "should be greater than or equal to 2"),
        (("--moments", "2001"), "should be less than or equal to 2000"),
        (("-a", "cpython-3.13x"), "cpython-3.13x"),
        (("--set", "glibc.arena_maxx=1"), "arena_max"),
        (("--trim-every", "0s"), "must be longer than 0"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(refused, trace, arguments, message):
    before = sorted(trace.parent.iterdir())
    assert message in " ".join(refused("report", trace.name, *arguments).split())
    assert sorted(trace.parent.iterdir()) == before


def test_a_missing_trace_is_refused(refused, trace):
    assert "missing.parquet" in refused("report", "missing.parquet")
    assert not Path("report.html").exists()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_existing_images_are_refused_before_the_page_is_written(replay, refused, trace, kind):
    Path("images").mkdir()
    image = Path("images") / f"lifetimes.{kind}"
    image.write_text("mine")
    assert f"{image}: already exists" in refused("report", trace.name, *STACK, f"--{kind}", "images")
    assert not Path("report.html").exists()
    assert image.read_text() == "mine"


def test_images_and_markdown_are_written(replay, trace):
    Path("docs").mkdir()
    code, out, _ = replay(
        "report", trace.name, *STACK, "--no-remedies", "-o", "a.html", "--png", "p q", "--svg", "s",
        "--markdown", "docs/a.md",
    )  # fmt: skip
    assert code == 0
    names = [*CHARTS[:3]]  # glibc alone has the heap; pymalloc has no arena in this trace
    assert written_by(out) == [
        "a.html", *(f"p q/{name}.png" for name in names), *(f"s/{name}.svg" for name in names), "docs/a.md",
    ]  # fmt: skip
    for name in names:
        assert Path(f"p q/{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert Path(f"s/{name}.svg").read_text().startswith("<svg")
    text = Path("docs/a.md").read_text()
    assert re.findall(r"\]\((.*)\)", text) == [f"../p%20q/{name}.png" for name in names]
    assert text.startswith("## Memory of app.parquet\n")
    assert text.endswith("Made by `replay report app.parquet -a cpython-3.12`.\n")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5}


def test_json_has_findings_summary_pins_and_remedies(replay, trace):
    code, out, _ = replay("report", trace.name, *STACK, "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found) == ["findings", "summary", "pins", "remedies", "written"]
    assert found["written"] == ["report.html"]
    run = json.loads(replay("run", trace.name, *STACK, "--json")[1])
    for name in ("resident_bytes_mean", "resident_bytes_peak", "resident_bytes_end"):
        assert found["summary"][name] == run[name]
    assert len(found["remedies"]) == 4


def test_without_remedies_nothing_is_advised(replay, trace):
    _, out, _ = replay("report", trace.name, *STACK, "--no-remedies")
    assert "What to try?" not in out
    text = Path("report.html").read_text()
    assert "What to try?" not in text
    assert "What other settings would do" not in text


@pytest.mark.parametrize("count", [2, 3, 50])
def test_moments_of_the_map_are_as_many_as_asked_for(replay, trace, count):
    assert replay("report", trace.name, *STACK, "--no-remedies", "--moments", count)[0] == 0
    meta = page_data("map-meta")
    times = [frame["time_ns"] for frame in meta["frames"] if not frame["label"]]
    duration_ns = meta["frames"][-1]["time_ns"]
    assert times == [duration_ns * number // count for number in range(1, count)]
    assert [frame["label"] for frame in meta["frames"] if frame["label"]] == ["peak", "end"]


def page_data(name: str, path: str = "report.html") -> dict:
    """The JSON in an element of a page."""
    text = Path(path).read_text()
    return json.loads(text.split(f'id="{name}">')[1].split("</script>")[0])


@pytest.mark.parametrize("name", [SIMPLE, CLOSING, MARKDOWN])
def test_names_of_a_trace_have_no_effect_on_the_page_or_on_markdown(replay, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    script = Script()
    burst = [script.new(20_000, 0) for _ in range(200)]
    script.new(600, 1)
    script.mark(0)
    script.free(*burst)
    sites = (Site(name, "app.py", 10), Site(f"{name} 2", "app.py", 20))
    write_trace(script.trace(name, sites=sites), tmp_path / "t.parquet")
    write_trace(
        script.trace("plain", sites=(Site("a", "app.py", 10), Site("b", "app.py", 20))), tmp_path / "plain.parquet"
    )
    pages = []
    for source in ("t.parquet", "plain.parquet"):
        assert replay("report", source, *STACK, "-o", f"{source}.html", "--markdown", f"{source}.md")[0] == 0
        pages.append(Elements(Path(f"{source}.html").read_text()))
    assert pages[0].tags == pages[1].tags
    assert pages[0].attributes == pages[1].attributes
    assert f"{name} 2 (app.py:20)" in pages[0].text
    meta = page_data("map-meta", "t.parquet.html")
    assert {each["label"] for each in meta["frames"]} == {"", name, "peak", "end"}
    assert meta["sites"] == [f"{name} (app.py:10)", f"{name} 2 (app.py:20)"]
    text = Path("t.parquet.md").read_text()
    assert name not in text
    assert f"{escaped(name)} 2 (app.py:20)" in text
    assert not re.search(r"(?<!\\)<", text)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_a_file_name_with_backticks_stays_code_in_markdown(replay, trace):
    trace.rename("a`<b>`.parquet")
    assert replay("report", "a`<b>`.parquet", *STACK, "--no-remedies", "--markdown", "a.md")[0] == 0
    assert Path("a.md").read_text().splitlines()[-1] == (
        "Made by `` replay report 'a`<b>`.parquet' -a cpython-3.12 ``."
    )


def test_control_characters_in_names_are_escaped(replay, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = Script()
    script.new(600, 0)
    write_trace(script.trace(sites=(Site("a\x1b[2J\u202eb", "app.py", 1),)), tmp_path / "t.parquet")
    _, out, _ = replay("report", "t.parquet", *STACK, "--markdown", "a.md")
    for text in (out, Path("report.html").read_text(), Path("a.md").read_text()):
        assert "\x1b" not in text
        assert "\u202e" not in text.replace("\\u202e", "")


@pytest.mark.parametrize("stack", ["cpython-3.12", "ideal", "bump", "cpython-3.12-malloc"])
def test_a_trace_without_events_gives_a_page_that_says_so(replay, tmp_path, monkeypatch, stack):
    monkeypatch.chdir(tmp_path)
    for name, history in {"none": History(), "marks": History()}.items():
        if name == "marks":
            history.mark()
            history.at(50).mark()
        write_trace(history.trace("idle"), tmp_path / f"{name}.parquet")
        code, out, err = replay(
            "report", f"{name}.parquet", "-a", stack, "-o", f"{name}.html", "--markdown", f"{name}.md"
        )
        assert (code, err) == (0, "")
        assert "How much memory? The trace takes no memory." in out
        text = Elements(Path(f"{name}.html").read_text()).text
        assert "The trace takes no memory." in text
        assert "Nothing was mapped." in text
        assert "0.0 %" not in out


def test_a_trace_of_one_event_gives_a_page(replay, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = History()
    history.malloc(100)
    write_trace(history.trace(), tmp_path / "t.parquet")
    code, out, err = replay("report", "t.parquet", *STACK)
    assert (code, err) == (0, "")
    assert "after 0 ns" in out
    assert [frame["label"] for frame in page_data("map-meta")["frames"]] == ["peak", "end"]


@pytest.mark.parametrize("stack", ["ideal", "bump", "cpython-3.12-malloc", "cpython-3.9"])
def test_every_kind_of_stack_has_a_page(replay, trace, stack):
    code, _, err = replay("report", trace.name, "-a", stack, "--no-remedies")
    assert (code, err) == (0, "")
    assert page_data("map-meta")["cells"] > 0
