"""Control characters in names (C0, C1, bidi) never reach the terminal, through any command."""

import re
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text
from typer.testing import CliRunner

import replay.commands
from replay.__main__ import COMMANDS, app
from replay.reports.console import PlainConsole
from replay.sources.parquet import write_trace
from replay.support.errors import explain_failure
from replay.support.names import printable, say
from replay.trace import Domain, Events, MemoryTrace, Metadata, Op, Process, Provenance, Site

C0 = "".join(map(chr, [*range(1, 10), *range(11, 32), 127]))
"""Control characters except NUL, which file names and arguments cannot have, and the end of a line."""
C1 = "".join(map(chr, range(128, 160)))
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
HOSTILE = f"a{C0}{C1}{BIDI}[b]:smile:"
FORBIDDEN = re.compile(f"[{re.escape(C0 + C1 + BIDI)}]")
LIMIT = ["-t", "resident_bytes_peak<=1GiB"]


def trace(**metadata):
    """A mark, a malloc and a free, with a site."""
    rows = [(0, Op.MARK, 0, 0), (1, Op.MALLOC, 0, 100), (2, Op.MALLOC, 1, 100), (3, Op.FREE, 0, 0)]
    times, ops, blocks, sizes = zip(*rows, strict=True)
    events = Events(
        np.array(times, np.int64), np.zeros(4, np.uint32), np.array(ops, np.uint8),
        np.full(4, Domain.OBJ, np.uint8), np.array(blocks, np.uint32), np.array(sizes, np.int64),
        site=np.zeros(4, np.uint32),
    )  # fmt: skip
    origin = Provenance(notes={HOSTILE: HOSTILE})
    about = {"phases": (HOSTILE,), "sites": (Site(HOSTILE, HOSTILE, 1),), "origin": origin}
    return MemoryTrace([events], Metadata(**about | metadata))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of hostile names and contents."""
    folder = tmp_path_factory.mktemp("foreign")
    write_trace(trace(), folder / f"{HOSTILE}.parquet")
    write_trace(trace(processes=(Process(HOSTILE, (0,)),)), folder / "processes.parquet")
    (folder / f"{HOSTILE}.csv").write_text(f"{HOSTILE},op\n1,{HOSTILE}\n")
    (folder / f"{HOSTILE}.rep").write_text(f"{HOSTILE}\n")
    escaped = "".join(f"\\u{ord(each):04x}" for each in C0 + C1 + BIDI)
    (folder / f"{HOSTILE}.yaml").write_text(f'duration: 1 s\n"{escaped}": "{escaped}"\n')
    (folder / "stack.yaml").write_text(f'extends: cpython-3.12\nlibc: {{model: "{escaped}", top_pad: "{escaped}"}}\n')
    (folder / f"{HOSTILE}.py").write_text("pass\n")
    (folder / f"{HOSTILE}.json").write_text("{}\n")
    (folder / "replay.toml").write_text(
        f'[cases."{escaped}"]\nsource = "processes.parquet"\ntolerances = ["syscalls<=0"]\n'
    )
    (folder / "loop").mkdir()
    return folder


@pytest.fixture
def shown(folder, tmp_path, monkeypatch):
    """Returns a function that runs a command and returns all its output."""
    monkeypatch.chdir(folder)

    def run(*words):
        result = CliRunner().invoke(app, words, terminal_width=1000)
        output = result.stdout + result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            sentence = explain_failure(result.exception)
            assert sentence is not None, result.exception
            output += printable(sentence, keep="\n")  # as `main` does by `say`
        return output

    return run


@pytest.mark.parametrize("name", ["a\nb.csv", "a\nb.parquet", "a\nb.rep", "a\nb.yaml", "a\nb.json"])
@pytest.mark.parametrize("words", [["run"], ["trace", "info"], ["check", "-t", "syscalls<=1"], ["sweep", "-a", "bump"]])
def test_the_end_of_a_line_in_a_name_does_not_end_the_line_of_a_message(shown, tmp_path, words, name):
    (tmp_path / name).write_text("hello\n")
    output = shown(*words, str(tmp_path / name))
    assert "a\\nb." in output
    assert "a\nb." not in output


NAME = f"{HOSTILE}.parquet"
LINES = [
    [HOSTILE],
    [f"--{HOSTILE}"],
    *([name, f"--{HOSTILE}"] for name in COMMANDS),
    ["schema", HOSTILE],
    ["allocators", HOSTILE],
    ["workloads", HOSTILE],
    ["run", NAME, "-a", "cpython-3.12", "--no-reference"],
    ["run", NAME, "-a", "cpython-3.12", "--no-reference", "--json"],
    ["run", NAME, "-a", "cpython-3.12", "--no-reference", "--out", HOSTILE, "--addresses", f"{HOSTILE}.a", "--force"],
    ["run", NAME, "-a", "stack.yaml"],
    ["run", "processes.parquet", "-a", "cpython-3.12", "--no-reference"],
    ["run", "processes.parquet", "-a", "cpython-3.12", "--no-reference", "--json"],
    *([name, NAME, "-a", "cpython-3.12"] for name in ("pins", "map")),
    ["pins", NAME, "-a", "cpython-3.12", "--without", HOSTILE],
    ["pins", NAME, "-a", "cpython-3.12", "--at", HOSTILE],
    ["map", NAME, "-a", "cpython-3.12", "--at", HOSTILE],
    ["compare", NAME, "processes.parquet", "-a", "cpython-3.12"],
    ["compare", NAME, f"{HOSTILE}.none", "-a", "cpython-3.12"],
    ["report", NAME, "-a", "cpython-3.12", "-o", f"{HOSTILE}.html", "--force"],
    ["report", NAME, "-a", "cpython-3.12", "-o", f"{HOSTILE}.html", "--force", "--json"],
    ["export", NAME, "-a", "cpython-3.12", "--to", "speedscope", "-o", f"{HOSTILE}.export", "--force"],
    ["export", NAME, "-a", "cpython-3.12", "--to", HOSTILE],
    *(["run", "startup-static", each, HOSTILE] for each in ("-a", "--set", "--env", "--sample", "--trim-every")),
    ["run", "startup-static", "--seed", HOSTILE],
    ["run", "startup-static", "-a", f"{HOSTILE}.yaml"],
    ["run", "startup-static", "--set", f"pymalloc.alignment={HOSTILE}"],
    ["run", "startup-static", "--env", f"MALLOC_ARENA_MAX={HOSTILE}"],
    *(["run", f"{HOSTILE}.{suffix}"] for suffix in ("csv", "rep", "yaml", "py", "none")),
    ["generate", f"{HOSTILE}.yaml", "-o", f"{HOSTILE}.out"],
    ["generate", HOSTILE, "-o", f"{HOSTILE}.out"],
    ["import", NAME, "-o", f"{HOSTILE}.imported", "--force"],
    ["import", NAME, "-o", NAME],
    ["import", f"{HOSTILE}.rep", "-o", f"{HOSTILE}.out"],
    ["import", NAME, "--format", HOSTILE, "-o", f"{HOSTILE}.out"],
    ["trace", HOSTILE],
    ["trace", "info", NAME],
    ["trace", "info", NAME, "--json"],
    ["trace", "info", NAME, "--live", "--full"],
    ["trace", "info", "processes.parquet"],
    ["trace", "head", NAME],
    ["trace", "head", "processes.parquet"],
    ["trace", "cut", NAME, "-o", f"{HOSTILE}.cut", "--phase", HOSTILE, "--force"],
    ["trace", "cut", NAME, "-o", f"{HOSTILE}.cut", "--phase", f"{HOSTILE}x"],
    ["trace", "cut", NAME, "-o", f"{HOSTILE}.cut", "--from", HOSTILE],
    ["trace", "filter", "processes.parquet", "-o", f"{HOSTILE}.filter", "--process", HOSTILE, "--force"],
    ["trace", "filter", "processes.parquet", "-o", f"{HOSTILE}.filter", "--process", f"{HOSTILE}x"],
    ["trace", "filter", NAME, "-o", f"{HOSTILE}.filter", "--domain", HOSTILE],
    ["trace", "merge", NAME, "processes.parquet", "-o", f"{HOSTILE}.merge"],
    ["trace", "scale", NAME, "-o", f"{HOSTILE}.scale", "--time-factor", HOSTILE],
    ["trace", "scale", NAME, "-o", f"{HOSTILE}.scale", "--repeat", "2", "--force"],
    ["record", f"{HOSTILE}.none"],
    ["record", "--rescue", f"{HOSTILE}.none"],
    ["record", "--sites-every", HOSTILE, f"{HOSTILE}.py"],
    ["record", "--python", HOSTILE, f"{HOSTILE}.py"],
    ["baseline", NAME, "--baseline", f"{HOSTILE}.baseline", "--force"],
    ["baseline", HOSTILE],
    ["check"],
    *(["check", "--report", form] for form in ("markdown", "github", "gitlab", "junit", "benchmark")),
    ["check", "--json"],
    ["check", NAME, "--baseline", f"{HOSTILE}.json"],
    ["check", NAME, *LIMIT, "--report", HOSTILE],
    ["check", NAME, "-t", HOSTILE],
    ["check", NAME, "--suite", f"{HOSTILE}.yaml"],
    ["check", NAME, *LIMIT, "--history", f"{HOSTILE}.history"],
    ["history", f"{HOSTILE}.history", "--case", HOSTILE],
    ["history", f"{HOSTILE}.history", "--metric", HOSTILE],
    ["history", NAME],
    ["sweep", NAME, "--grid", "glibc.top_pad=0", "-a", "cpython-3.12", "--out", f"{HOSTILE}.sweep", "--force"],
    ["sweep", "show", f"{HOSTILE}.sweep"],
    ["sweep", "show", HOSTILE],
    *(["sweep", NAME, option, HOSTILE] for option in ("--grid", "--set", "--env", "--where", "--by", "--plan", "-a")),
    ["sweep", NAME, "--grid", f"pymalloc.alignment={HOSTILE}"],
    ["verify", f"{HOSTILE}.none"],
    ["verify", "processes.parquet"],
    ["verify", "-a", HOSTILE],
    ["verify", "--libc", "-a", HOSTILE],
    ["verify", "--sweep", HOSTILE],
]  # fmt: skip


def test_histories_and_sweeps_may_have_names_that_look_like_patterns(shown):
    assert shown("check", NAME, *LIMIT, "--history", "h[1].parquet").endswith("1 passed\n")
    assert "1 passed" in shown("check", NAME, *LIMIT, "--history", "h[1].parquet")
    assert "no step" in shown("history", "h[1].parquet")
    shown("sweep", NAME, "--grid", "glibc.top_pad=0", "-a", "cpython-3.12", "--out", "s[1]")
    assert "2 configurations" in shown("sweep", "show", "s[1]")


def test_every_command_is_among_the_lines():
    assert {words[0] for words in LINES} >= set(COMMANDS)


@pytest.mark.parametrize("words", LINES, ids=lambda words: printable(" ".join(words))[:40].replace("\\", "/"))
def test_no_control_character_reaches_the_screen(shown, words):
    output = shown(*words)
    assert output
    assert not FORBIDDEN.search(output), FORBIDDEN.findall(output)


def test_commands_print_by_the_one_function_or_the_one_console():
    folder = Path(replay.commands.__file__).parent
    for path in [*folder.glob("*.py"), folder.with_name("__main__.py")]:
        assert not re.search(r"typer\.echo|click\.echo|(?<![\w.])(print|Console)\(|rich\.console", path.read_text()), (
            path
        )


def test_text_is_shown_unchanged_except_for_control_characters(capsys):
    say("é █ 漢\n\x1b[31m\u202e\x85\ud800")
    say("error", err=True)
    assert capsys.readouterr() == ("é █ 漢\n\\x1b[31m\\u202e\\x85\\ud800\n", "error\n")


def test_the_console_shows_text_unchanged_except_for_control_characters(capsys):
    console = PlainConsole(width=80)
    console.print("[b]é[/b] :smile:\x1b[31m")
    console.print(Text("a\u202eb", style="bold"))
    assert capsys.readouterr().out == "[b]é[/b] :smile:\\x1b[31m\na\\u202eb\n"
