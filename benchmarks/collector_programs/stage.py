"""Stages of a program: the settings of the collector that it is to run with, and its peak of resident memory.

The environment variable COLLECTOR has the statement that sets the collector, or is empty; COLLECTOR_AT says at which
stage it is executed. A recorded program marks the stages.
"""

import gc
import os
import sys


def reach(name: str) -> None:
    """Executes the setting of this stage, and marks the stage if the program is recorded."""
    if os.environ.get("COLLECTOR_AT") == name:
        exec(os.environ["COLLECTOR"], {"gc": gc})
    if "_replay_tap" in sys.modules:
        sys.modules["_replay_tap"].tap.mark(name)
    if name == "end":
        with open("/proc/self/status") as status:  # noqa: PTH123 — imports less than pathlib
            print(next(line for line in status if line.startswith("VmHWM")).split()[1])
