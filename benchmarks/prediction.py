"""Compares the memory of a real process with replay's prediction from one recording, for several settings.

    python benchmarks/prediction.py [RUNS]

The program is `service.py` of the README. It is run RUNS times (default: 7) with each setting of glibc or CPython, and
prints its peak of resident memory (`VmHWM`). Then it is recorded once with the default settings, and the recording is
simulated with each setting. The table has the changes from the default, which need no estimate of the interpreter's own
memory. The last line adds the resident memory of an interpreter that runs nothing.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
REPLAY = Path(sys.executable).with_name("replay")
MEBIBYTE = 1 << 20
VERSION = "{}.{}".format(*sys.version_info)
SETTINGS = {
    "default": [],
    "MALLOC_ARENA_MAX=1": ["--env", "MALLOC_ARENA_MAX=1"],
    "MALLOC_ARENA_MAX=2": ["--env", "MALLOC_ARENA_MAX=2"],
    "MALLOC_TRIM_THRESHOLD_=65536": ["--env", "MALLOC_TRIM_THRESHOLD_=65536"],
    "MALLOC_MMAP_THRESHOLD_=65536": ["--env", "MALLOC_MMAP_THRESHOLD_=65536"],
    "PYTHONMALLOC=malloc": ["-a", f"cpython-{VERSION}-malloc"],
}


def measured_peak(program: Path, setting: str) -> float:
    """Returns the peak of resident memory of one run of the program, in MiB."""
    given = [] if setting == "default" else [setting]
    printed = subprocess.run(
        ["env", *given, sys.executable, program], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"VmHWM:\s*(\d+) kB", printed)
    assert found
    return int(found[1]) * 1024 / MEBIBYTE


def simulated_peak(recording: Path, arguments: list[str]) -> float:
    """Returns the simulated peak of resident memory, in MiB."""
    command = [REPLAY, "run", recording, "--json", "--no-reference", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["resident_bytes_peak"] / MEBIBYTE


def main(runs: int) -> None:
    source = re.search(r"^# service\.py\n.*?(?=^```)", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert source
    with tempfile.TemporaryDirectory() as folder:
        program, recording = Path(folder, "service.py"), Path(folder, "service.parquet")
        program.write_text("print(open('/proc/self/status').read())", encoding="utf-8")
        bare = measured_peak(program, "default")
        program.write_text(source[0], encoding="utf-8")
        measured = {each: [measured_peak(program, each) for _ in range(runs)] for each in SETTINGS}
        subprocess.run([REPLAY, "record", "-o", recording, program], check=True, capture_output=True)
        simulated = {each: simulated_peak(recording, arguments) for each, arguments in SETTINGS.items()}
    print(
        f"CPython {platform.python_version()}, {' '.join(platform.libc_ver())}, Linux {os.uname().release}, {runs} runs"
    )
    base = statistics.median(measured["default"])
    print("| setting | peak, median (lowest to highest) | change, measured | change, predicted |\n|---|---|---|---|")
    for each, values in measured.items():
        median = statistics.median(values)
        changes = f"{median - base:+.1f} MiB | {simulated[each] - simulated['default']:+.1f} MiB"
        shown = f"{median:.1f} MiB ({min(values):.1f} to {max(values):.1f})"
        print(f"| {each if each == 'default' else f'`{each}`'} | {shown} | {'| ' if each == 'default' else changes} |")
    print(f"default: {simulated['default']:.1f} MiB simulated, and {bare:.1f} MiB of an interpreter that runs nothing")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
