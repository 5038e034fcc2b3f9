"""Imports of commands before they simulate anything: numba takes half a second."""

import json
from pathlib import Path

import pytest
from conftest import run_python

pytestmark = pytest.mark.system

HEAVY = ("numba", "llvmlite")
REFUSED = [
    ["run", "absent.parquet"],
    ["run", "web-service", "-a", "absent"],
    ["run", "web-service", "--set", "pymalloc.alignment=3"],
    ["run", "web-service", "--env", "MALLOC_NONSENSE=1"],
    ["run", "notes.txt"],
    ["record", "absent.py"],
    ["generate", "absent"],
    ["verify", "absent.parquet"],
    ["import", "absent.bin"],
    ["baseline", "absent"],
    ["check", "absent"],
    ["history", "absent.parquet"],
    ["sweep", "absent"],
    ["sweep", "web-service", "--grid", "pymalloc.nonsense=1"],
    ["trace", "info", "absent.parquet"],
    ["trace", "cut", "absent.parquet", "-o", "piece.parquet", "--to", "1s"],
]
LISTED = [["allocators"], ["workloads"], ["schema", "config"], ["--version"]]


def imported_by(code: str, folder: Path) -> tuple[int, list[str]]:
    """Runs code in a new interpreter; returns its exit code and the heavy modules that it imported."""
    program = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps([name for name in {HEAVY!r} if name in sys.modules])))
{code}
"""
    done = run_python("-c", program, cwd=folder)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import replay",
        "import replay; replay.load_config('cpython-3.12', ['glibc.version=2.41'])",
        "import replay; replay.open_source('web-service'); replay.open_source('json-roundtrip')",
        "import replay; replay.sweep, replay.run, replay.record, replay.verify, replay.write_trace",
    ],
)
def test_the_api_imports_no_compiler_before_a_simulation(code: str, tmp_path: Path) -> None:
    assert imported_by(code, tmp_path) == (0, [])


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_a_refusal_imports_no_compiler(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("milk, bread\n")
    command = f"from replay.__main__ import main; sys.argv[1:] = {arguments!r}; main()"
    assert imported_by(command, tmp_path) == (2, [])


@pytest.mark.parametrize("arguments", LISTED, ids=" ".join)
def test_a_list_imports_no_compiler(arguments: list[str], tmp_path: Path) -> None:
    command = f"from replay.__main__ import main; sys.argv[1:] = {arguments!r}; main()"
    assert imported_by(command, tmp_path) == (0, [])
