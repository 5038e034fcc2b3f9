"""The command line as a whole: every command has help, starts fast, and is reached by the installed script."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from replay import __version__
from replay.__main__ import COMMANDS as LINES
from replay.__main__ import app, load_command
from replay.support.bundled_files import config_names

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("replay")
HEAVY = ("numba", "polars", "pyarrow", "numpy", "simpy")


TOP = {name: load_command(name) for name in LINES}


def _commands(commands, path=()):
    """Returns all commands by their words."""
    for name, command in sorted(commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command.commands, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(TOP))


def run_python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_the_commands_are_those_of_the_manual():
    assert set(COMMANDS) >= {
        ("run",), ("generate",), ("verify",), ("import",), ("allocators",), ("workloads",), ("schema",),
        ("trace", "info"), ("trace", "head"),
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_by_an_example(words):
    result = CliRunner().invoke(app, [*words, "--help"], terminal_width=100)
    assert result.exit_code == 0
    assert CliRunner().invoke(app, [*words, "-h"], terminal_width=100).output == result.output
    assert f"replay {' '.join(words)}" in f"{COMMANDS[words].help} {COMMANDS[words].epilog}"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_shows_no_value_for_a_flag(words):
    assert "<bool>" not in CliRunner().invoke(app, [*words, "--help"], terminal_width=100).output


def test_the_usage_of_sweep_is_as_people_write_it():
    lines = CliRunner().invoke(app, ["sweep", "--help"], terminal_width=100, prog_name="replay").output.splitlines()
    assert lines[1].strip() == "Usage: replay sweep [OPTIONS] [SOURCE]..."


@pytest.mark.parametrize("name", LINES)
def test_the_line_in_the_list_of_commands_is_the_first_of_its_help(name):
    command = TOP[name]
    first = command.commands["run"] if name == "sweep" else command
    assert LINES[name][1] == " ".join(first.help.split("\n\n")[0].split())


@pytest.mark.system
def test_a_command_imports_no_other():
    code = (
        "import sys; sys.argv = ['replay', 'schema', '--help']\n"
        "from replay.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in sys.modules if name.startswith('replay.commands.')])\n"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "['replay.commands.stopping', 'replay.commands.schema']"


def test_the_version_is_printed():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"replay {__version__}\n")


@pytest.mark.system
def test_commands_run_without_docstrings():
    assert run_python("-OO", "-m", "replay", "schema", "workload").returncode == 0


@pytest.mark.system
def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['replay', '--help']\n"
        "from replay.__main__ import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = run_python("-c", code)
    assert "Simulate the memory allocators" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.system
def test_listing_allocators_does_not_start_the_compiler():
    code = (
        "import sys; sys.argv = ['replay', 'allocators', '--json']\n"
        "from replay.__main__ import main\n"
        "try: main()\n"
        "finally: print([name for name in ('numba', 'llvmlite', 'polars') if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.system
def test_the_module_runs_as_the_script_does():
    result = run_python("-m", "replay", "run", "web-servise")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("replay: web-servise: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.system
@pytest.mark.parametrize("command", ["--help", "allocators", "schema config", "run startup-static --no-reference"])
def test_a_closed_or_missing_standard_output_is_not_an_error(command):
    for shell in (
        f"{sys.executable} -m replay {command} | true; exit ${{PIPESTATUS[0]}}",
        f"{sys.executable} -m replay {command} >&-",
    ):
        done = subprocess.run(["bash", "-c", shell], stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0
        assert "Error" not in done.stderr


@pytest.mark.system
@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_does_not_depend_on_a_closed_output(code):
    program = (
        "import sys; from replay import __main__ as command\n"
        f"command.app = lambda: (print('x' * 10**6), print('y' * 10**6, flush=True), sys.exit({code}))\n"
        "command.main()\n"
    )
    done = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.close()
    assert (done.stderr.read(), done.wait(60)) == ("", code)


def test_the_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"replay": "replay.__main__:main"}


@pytest.mark.system
@pytest.mark.skipif(not SCRIPT.exists(), reason=f"alloc-replay is not installed beside {sys.executable}")
def test_the_installed_script_prints_help_and_simulates_a_workload(tmp_path):
    helped = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "Example: replay run web-service" in helped.stdout
    command = [SCRIPT, "run", "startup-static", "--json", "--no-reference"]
    played = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(played.stdout)["static_bytes"] == 96 << 20
    assert list(tmp_path.iterdir()) == []


def test_the_presets_are_listed_with_a_sentence_each_older_versions_first():
    result = CliRunner().invoke(app, ["allocators", "--json"])
    presets = json.loads(result.stdout)["presets"]
    assert sorted(preset["name"] for preset in presets) == sorted(config_names())
    assert all(preset["description"].endswith(".") for preset in presets)
    names = [preset["name"] for preset in presets]
    assert names.index("cpython-3.9") < names.index("cpython-3.10") < names.index("cpython-3.11-32bit")


def test_the_models_are_listed_with_their_roles():
    result = CliRunner().invoke(app, ["allocators", "--json"])
    roles = {model["name"]: model["roles"] for model in json.loads(result.stdout)["models"]}
    assert {name: roles[name] for name in ("glibc", "ideal", "bump", "pymalloc")} == {
        "glibc": ["libc"], "ideal": ["libc"], "bump": ["libc"], "pymalloc": ["small"],
    }  # fmt: skip


def test_the_listed_models_are_those_that_a_configuration_can_name():
    from replay.allocators import model_names

    result = CliRunner().invoke(app, ["allocators", "--json"])
    assert sorted(model["name"] for model in json.loads(result.stdout)["models"]) == model_names()


def test_allocators_for_people_name_presets_and_models():
    result = CliRunner().invoke(app, ["allocators"], terminal_width=100)
    assert "cpython-3.15-hugepages" in result.stdout
    assert "glibc" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: replay run ")
