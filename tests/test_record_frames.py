"""What is known of CPython's own structures: the frames of each version, and line tables."""

import inspect
import sysconfig
from pathlib import Path

from replay.recorder import frames, tap
from replay.recorder.line_table import line_starts


def test_frames_are_known_of_every_version_that_is_recorded_with_sites():
    oldest, newest = tap.OLDEST[1], tap.NEWEST_WITH_SITES[1]
    assert set(frames.LAYOUTS) == {(3, minor) for minor in range(oldest, newest + 1)}


def codes_within(code):
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from codes_within(constant)


def test_lines_of_the_standard_library_are_those_that_cpython_tells():
    checked = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::4]:
        for code in codes_within(compile(path.read_bytes(), str(path), "exec")):
            expected = [line or 0 for line, *_ in code.co_positions()]
            starts = list(line_starts(code.co_linetable, code.co_firstlineno))
            ends = [start for start, _ in starts[1:]] + [len(expected)]
            told = [line for (start, line), end in zip(starts, ends, strict=True) for _ in range(end - start)]
            assert told == expected, code
            checked += len(expected)
    assert checked > 100_000


def test_a_line_far_away_and_a_line_before():
    source = "def f():\n return (g(" + "\n" * 5_000 + "1)" + "\n" * 100 + " + h)\n"
    (code,) = (each for each in codes_within(compile(source, "far.py", "exec")) if each.co_name == "f")
    lines = {line for _, line in line_starts(code.co_linetable, code.co_firstlineno)}
    assert lines == {line or 0 for line, *_ in code.co_positions()}
    assert lines >= {1, 2, 5_002}
