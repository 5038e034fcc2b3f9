"""Compares the memory of programs under other settings of the garbage collector with replay's prediction.

    python benchmarks/collector_settings.py [--runs N] [--python PATH] [PROGRAM ...]

Each program in `collector_programs` is recorded once with types at the default settings, and simulated with each other
setting. Then it runs N times (default: 7) with each setting, and prints its peak of resident memory (`VmHWM`). The
prediction is the measured peak at the default settings plus the simulated change, so it needs no estimate of the
interpreter's own memory. Beside it are its bounds, for the earliest and the latest moments at which objects can have
become garbage.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "collector_programs"
NAMES = tuple(sorted(path.stem for path in PROGRAMS.glob("[!_]*.py") if path.stem != "stage"))
REPLAY = Path(sys.executable).with_name("replay")
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Setting:
    """A setting: what the program executes at which stage, and the options of `replay run`."""

    statement: str
    stage: str
    options: tuple[str, ...]


SETTINGS = {
    "(50_000, 20, 20)": Setting(
        "gc.set_threshold(50_000, 20, 20)",
        "begin",
        ("gc.threshold0=50000", "gc.threshold1=20", "gc.threshold2=20"),
    ),
    "disabled": Setting("gc.disable()", "begin", ("gc.enabled=false",)),
    "frozen": Setting("gc.freeze()", "started", ("gc.freeze_at=started",)),
}


@dataclass(frozen=True)
class Prediction:
    """Peaks of resident memory in MiB."""

    peak: float
    low: float
    high: float
    measured: list[float]

    @property
    def error(self) -> float:
        """The relative error against the median."""
        return self.peak / statistics.median(self.measured) - 1

    @property
    def outside(self) -> float:
        """The relative distance of the median from the bounds; 0 between them."""
        median = statistics.median(self.measured)
        return max(self.low - median, median - self.high, 0.0) / median


def measured_peak(python: str, name: str, setting: Setting | None) -> float:
    """Returns the peak of resident memory of one run of the program, in MiB."""
    added = {"COLLECTOR": setting.statement, "COLLECTOR_AT": setting.stage} if setting else {}
    command = [python, PROGRAMS / f"{name}.py"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | added).stdout
    return int(printed) * 1024 / MEBIBYTE


def record(python: str, name: str, recording: Path) -> None:
    command = [REPLAY, "record", "--types", "--python", python, "-o", recording, PROGRAMS / f"{name}.py"]
    subprocess.run(command, check=True, capture_output=True)


def simulated(recording: Path, options: tuple[str, ...]) -> dict[str, float]:
    """Returns the simulated peak of resident memory and its bounds, in MiB."""
    command = [
        REPLAY,
        "run",
        recording,
        "--json",
        "--no-reference",
        *(word for each in options for word in ("--set", each)),
    ]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    peak = summary["resident_bytes_peak"]
    found = summary.get("collector_what_if") or {}
    return {
        "peak": peak / MEBIBYTE,
        "low": found.get("resident_bytes_peak_low", peak) / MEBIBYTE,
        "high": found.get("resident_bytes_peak_high", peak) / MEBIBYTE,
    }


def compare(name: str, python: str, runs: int, folder: Path) -> tuple[float, dict[str, Prediction]]:
    """Returns the measured peak at the default settings in MiB, and a prediction for each setting."""
    recording = folder / f"{name}.parquet"
    record(python, name, recording)
    base = statistics.median(measured_peak(python, name, None) for _ in range(runs))
    rest = base - simulated(recording, ())["peak"]
    predictions = {}
    for each, setting in SETTINGS.items():
        found = {key: value + rest for key, value in simulated(recording, setting.options).items()}
        predictions[each] = Prediction(**found, measured=[measured_peak(python, name, setting) for _ in range(runs)])
    return base, predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"default: {', '.join(NAMES)}")
    chosen = parser.parse_args()
    print(subprocess.run([chosen.python, "-V"], check=True, capture_output=True, text=True).stdout.strip())
    print("| program | setting | measured, median (lowest to highest) | predicted | error | bounds | outside |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.programs or NAMES:
            base, predictions = compare(name, chosen.python, chosen.runs, Path(folder))
            print(f"| {name} | default | {base:.1f} MiB | | | | |")
            for setting, each in predictions.items():
                median, least, most = statistics.median(each.measured), min(each.measured), max(each.measured)
                print(
                    f"| {name} | {setting} | {median:.1f} MiB ({least:.1f} to {most:.1f}) | {each.peak:.1f} MiB "
                    f"| {each.error:+.1%} | {each.low:.1f} to {each.high:.1f} | {each.outside:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
