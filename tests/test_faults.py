"""Signals, failing calls and full disks at random moments: no half-written file, no lost result, no traceback."""

from pathlib import Path

import pytest
from conftest import run_python
from faults import COMMANDS, FAULTS

HARNESS = Path(__file__).with_name("faults.py")
SEEDS = 4
"""`python tests/faults.py 50` tries many more, in about an hour."""


def tried(seeds: int, command: str) -> None:
    """Tries all faults with these seeds, in a process without threads."""
    done = run_python(HARNESS, seeds, command, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line[24:].split()[0] for line in lines] == [str(seeds)] * len(FAULTS), lines


@pytest.mark.system
def test_a_fault_during_an_import_leaves_whole_results_and_a_sentence() -> None:
    tried(2, "import")


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("command", COMMANDS)
def test_faults_during_a_command_leave_whole_results_and_a_sentence(command: str) -> None:
    tried(SEEDS, command)
