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


PROGRAM = f"""
import json, os, sys
import polars, pyarrow.parquet, pydantic, rich, typer, yaml
from replay.__main__ import main

def heavy():
    return [name for name in {HEAVY!r} if name in sys.modules]

assert heavy() == []
for words in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        sys.argv[1:], output = words, os.dup(1)
        os.dup2(2, 1)
        try:
            main()
        except SystemExit as end:
            os.write(output, (json.dumps([words, end.code or 0, heavy()]) + "\\n").encode())
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Runs commands, each in a fork of a process that has imported what is not heavy."""


@pytest.fixture(scope="module")
def after_commands(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, list[str]]]:
    """Exit codes of commands, and the heavy modules that they imported."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "notes.txt").write_text("milk, bread\n")
    done = run_python("-c", PROGRAM, json.dumps(REFUSED + LISTED), cwd=folder)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {tuple(words): (code, heavy) for words, code, heavy in rows}


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
def test_a_refusal_imports_no_compiler(arguments: list[str], after_commands: dict) -> None:
    assert after_commands[tuple(arguments)] == (2, [])


@pytest.mark.parametrize("arguments", LISTED, ids=" ".join)
def test_a_list_imports_no_compiler(arguments: list[str], after_commands: dict) -> None:
    assert after_commands[tuple(arguments)] == (0, [])


def test_a_simulation_of_a_workload_imports_no_object_programs(tmp_path: Path) -> None:
    code = """
import sys
from replay.__main__ import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, ["run", "startup-static", "--no-reference"]).exit_code == 0
print([name for name in sys.modules if name.startswith("replay.objects")])
"""
    assert run_python("-c", code, cwd=tmp_path).stdout == "[]\n"
