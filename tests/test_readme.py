"""The README as a newcomer reads it: its commands, in order, in one empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from replay.__main__ import app

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if not line.startswith("pip ")]


@pytest.mark.system
@pytest.mark.slow
def test_all_commands_work_in_order_in_one_folder(tmp_path):
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    assert len(COMMANDS) > 20
    for command in COMMANDS:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_report_in_the_first_screen_is_the_real_one():
    shown = re.search(r"^(flask-requests on .*?)\n\n[\d,]+ events in .*?\n(next: .*?)\n```$", README, re.M | re.S)
    assert shown
    real = CliRunner().invoke(app, ["run", "flask-requests", "-a", "cpython-3.11"]).stdout.splitlines()
    assert real[:-3] == shown[1].splitlines()
    assert real[-1] == shown[2]
    assert shown.end() < 2_500
