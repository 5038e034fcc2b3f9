"""CPython's own structures: frames of each version, and line tables."""

import inspect
import os
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path

import pytest

from replay.jit.kernel_cache import cache_root
from replay.recorder import frames, tap
from replay.recorder.line_table import line_starts


def test_frames_are_known_of_every_version_that_is_recorded_with_sites():
    oldest, newest = tap.OLDEST[1], tap.NEWEST_WITH_SITES[1]
    assert set(frames.LAYOUTS) == {(3, minor) for minor in range(oldest, newest + 1)}


def include_folders():
    """Folders of headers with CPython's internal ones: pyenv's, installed, fetched by `.ci/fetch-interpreters`."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    fetched = cache_root().glob("interpreters/*/usr/include")
    roots = [*pyenv.glob("versions/3.*/include"), Path("/usr/include"), *fetched]
    folders = [folder for root in roots for folder in root.glob("python3.*")]
    return sorted(folder for folder in folders if (folder / "internal/pycore_frame.h").exists())


@pytest.mark.system
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("version", frames.LAYOUTS, ids=lambda version: f"3.{version[1]}")
def test_every_number_equals_that_of_cpythons_headers(tmp_path, version):
    folders = [folder for folder in include_folders() if folder.name == f"python3.{version[1]}"]
    if not folders:
        pytest.skip("no headers of that version")
    layout, source = frames.LAYOUTS[version], Path(__file__).parent / "frames.c"
    for folder in folders:
        includes = [f"-I{folder}", f"-I{folder}/internal", f"-I{folder.parent}"]  # Debian has one in another
        subprocess.run(["gcc", "-w", *includes, str(source), "-o", str(tmp_path / "frames")], check=True)
        values = defaultdict(list)
        for line in subprocess.check_output([tmp_path / "frames"], text=True).splitlines():
            name, _, value = line.rpartition(" ")
            values[name].append(int(value))
        assert values.pop("state_to_frame") == list(layout.state_to_frame)
        assert values.pop("other_text of a subclass") == [layout.other_text]
        assert values == {name: [getattr(layout, name, getattr(frames, name, None))] for name in values}, folder
        assert set(values) >= set(layout._fields) - {"state_to_frame", "state_is_own"}


def codes_within(code):
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from codes_within(constant)


def test_lines_of_the_standard_library_equal_those_of_cpython():
    checked = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::4]:
        if not path.exists():  # a link to a missing package
            continue
        for code in codes_within(compile(path.read_bytes(), str(path), "exec")):
            expected = [line or 0 for line, *_ in code.co_positions()]
            starts = list(line_starts(code.co_linetable, code.co_firstlineno))
            ends = [start for start, _ in starts[1:]] + [len(expected)]
            lines_by_unit = [line for (start, line), end in zip(starts, ends, strict=True) for _ in range(end - start)]
            assert lines_by_unit == expected, code
            checked += len(expected)
    assert checked > 100_000


def test_a_line_far_away_and_a_line_before():
    source = "def f():\n return (g(" + "\n" * 5_000 + "1)" + "\n" * 100 + " + h)\n"
    (code,) = (each for each in codes_within(compile(source, "far.py", "exec")) if each.co_name == "f")
    lines = {line for _, line in line_starts(code.co_linetable, code.co_firstlineno)}
    assert lines == {line or 0 for line, *_ in code.co_positions()}
    assert lines >= {1, 2, 5_002}
