"""The commands of README.md and docs/*.md work in the order of their page, in one empty folder."""

import re
import shlex
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from conftest import server

from replay.__main__ import COMMANDS, load_command
from replay.support.errors import TraceError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from pages import PAGES, blocks, commands, comparable, run_page  # noqa: E402
from pictures import terminal  # noqa: E402

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"]}
RUN = [page.name for page in PAGES if any(block.is_run for block in blocks(TEXTS[page.name]))]
NOT_RUN = Counter(
    {
        ("README.md", "installs into the reader's environment"): 1,
        ("README.md", "needs a second interpreter"): 2,
        ("performance.md", "takes minutes"): 3,
        ("sweeps.md", "needs a cluster"): 1,
        ("verification.md", "takes an hour"): 2,
        ("verification.md", "needs root, and takes 1.4 GiB from other programs"): 3,
    }
)
"""Number of commands by page that are not run, with the reasons. Add a line only if a test cannot run the command."""


@pytest.fixture
def short_path():
    """A new folder with a short name, because tables break long paths."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_work_and_print_what_it_shows(page, short_path):
    ran = 0
    for block, command, done in run_page(TEXTS[page], short_path, server().folder):
        assert done.returncode == command.exit_code, f"{command.text}\n{done.stdout}{done.stderr}"
        if command.shown:
            assert comparable(done.stdout, block) == comparable(command.shown, block), command.text
        ran += 1
    assert ran


def test_commands_that_are_not_run_are_few_and_each_has_a_reason():
    found = Counter()
    for page, text in TEXTS.items():
        for block in blocks(text):
            if block.reason_not_to_run:
                found[page, block.reason_not_to_run] += len(commands(block))
    assert found == NOT_RUN


def test_every_note_of_a_block_is_understood():
    notes = [block for text in TEXTS.values() for block in blocks(text) if block.note]
    assert [block.note for block in notes if not block.reason_not_to_run and not block.figures_vary] == []


def test_a_block_with_commands_is_marked_as_one():
    bare = [block for text in TEXTS.values() for block in blocks(text) if block.language not in ("sh", "console")]
    assert [block.body for block in bare if re.search(r"^(\$ )?(replay|pytest|pip) ", block.body, re.MULTILINE)] == []


def inline_commands():
    found = []
    for page, text in TEXTS.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`(replay [^`]+)`", prose):
            found.append(pytest.param(" ".join(span.split()), id=f"{page}: {' '.join(span.split())}"))
    return found


@pytest.mark.parametrize("text", inline_commands())
def test_a_command_within_a_sentence_has_options_that_exist(text):
    words = shlex.split(text.partition(" -- ")[0])[1:]
    if words[0] == "--version":
        return
    assert words[0] in COMMANDS
    command = load_command(words.pop(0))
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command = getattr(command, "commands", {}).get("run", command)  # what `replay sweep SOURCE` means
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("-") and word.partition("=")[0] not in known] == []


def test_the_format_of_the_contributors_page_reads_its_log(tmp_path):
    example = re.search(r"^   ```python\n(.*?)^   ```$", TEXTS["CONTRIBUTING.md"], re.MULTILINE | re.DOTALL)
    assert example
    module = {}
    exec(textwrap.dedent(example[1]), module)
    log = tmp_path / "a.mylog"
    log.write_text("MYLOG\nmalloc 7 100\nrealloc 7 300\nfree 7 0\n")
    (events,) = module["open_trace"](log).batches()
    assert (events.op.tolist(), events.block.tolist(), events.size.tolist()) == ([0, 2, 3], [7, 7, 7], [100, 300, 0])
    log.write_text("MYLOG\nmalloc x 100\n")
    with pytest.raises(TraceError, match="line 2: 'malloc x 100' is not a line of mylog"):
        module["open_trace"](log)


def test_the_picture_has_the_lines_of_the_readme():
    svg = terminal.PICTURE.read_text(encoding="utf-8")
    assert terminal.lines_of(svg) == [line for line in terminal.shown_lines() if line]
    assert svg == terminal.picture()


def test_the_first_screen_says_what_replay_is_and_shows_it():
    screen = re.sub(r"<details>.*</details>", "", TEXTS["README.md"].partition("## ")[0], flags=re.DOTALL)
    assert len(screen) < 2_200
    assert screen.index("pip install") < screen.index("replay run") < screen.index("run.svg")
