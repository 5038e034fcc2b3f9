"""Measures `replay report` with a heap of 1,000 arenas at 500 moments: making the page, and the page in Chromium.

    python benchmarks/report.py                      the workload below
    python benchmarks/report.py --source TRACE       another trace or workload, with default moments unless --moments N

Prints the seconds of `replay run` and of `replay report` (medians, in turn, each in a separate process, after one
that compiles), their processor time, which other programs disturb less, the peaks of memory, and the size of the page.
Then, in Chromium: the time to the first paint and until the heap map is ready, the memory of the page, and the time of
a step of the slider, the shortest of three: to the next moment, and to any other. Needs playwright and Chromium.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import which

from playwright.sync_api import Browser, Page, sync_playwright

WORKLOAD = """
description: a structure of 250 MiB is dropped; small blocks between its nodes pin all of its arenas
duration: 6 s
seed: 7
process: {static: 12 MiB, stack_reserved: 8 MiB, stack_touched: 64 KiB}
streams:
  nodes:
    arrivals: {kind: fixed, rate: 192000/s}
    stop: 3 s
    size: 440
    lifetime: forever
    group: structure
  pins:
    arrivals: {kind: fixed, rate: 384/s}
    stop: 3 s
    size: 440
    lifetime: forever
  afterwards:
    arrivals: {kind: poisson, rate: 30000/s}
    start: 3500 ms
    size: {kind: choice, weights: {48: 3, 64: 5, 72: 2, 232: 1}}
    lifetime: {kind: exponential, mean: 20 ms}
phases:
  - {name: built, start: 3 s}
  - {name: dropped, start: 3200 ms, free: [structure]}
"""
MOMENTS = 500
ROUNDS = 3
STEPS = """
(frames) => frames.map((frame) => {
  const slider = document.getElementById("map-slider");
  slider.value = frame;
  const started = performance.now();
  slider.dispatchEvent(new Event("input"));
  return performance.now() - started;
})
"""


def measured(*arguments: object) -> tuple[float, float, float]:
    """Runs `replay`; returns the seconds, those of processors, and the peak of its memory in MiB."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "replay", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: replay {' '.join(command[3:])}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def resident_mib(browser: Browser) -> float:
    """Returns the resident memory of the largest renderer process."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    found = []
    for process in processes:
        if process["type"] == "renderer":
            status = Path(f"/proc/{process['id']}/status").read_text()
            found.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    return max(found)


def shortest(page: Page, frames: Sequence[int]) -> list[float]:
    """Returns the milliseconds of a step to each of the moments in turn: the shortest of three times."""
    times = [page.evaluate(STEPS, list(frames)) for _ in range(ROUNDS)]
    return [min(each) for each in zip(*times, strict=True)]


def in_chromium(page_file: Path) -> str:
    """Returns what the page takes in Chromium."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(page_file.as_uri(), wait_until="commit")
        page.wait_for_function("window.heapMapReady")
        ready_ms = page.evaluate("performance.now()")
        paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        last = int(page.locator("#map-slider").get_attribute("max"))
        forth = shortest(page, range(last))
        jumps = shortest(page, [number * 997 % (last + 1) for number in range(last)])
        memory = resident_mib(browser)
        browser.close()
    steps = "; ".join(
        f"{name} {statistics.median(times):.1f} ms, at most {max(times):.1f} ms"
        for name, times in (("a step forth", forth), ("a jump", jumps))
    )
    return f"first paint {paint_ms / 1000:.2f} s, map ready {ready_ms / 1000:.2f} s, {memory:.0f} MiB resident; {steps}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source")
    parser.add_argument("--moments", type=int)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        source, options = arguments.source, []
        moments = arguments.moments or (None if source else MOMENTS)
        if not source:
            source = str(Path(folder) / "pinned.yaml")
            Path(source).write_text(WORKLOAD)
            options = ["-a", "cpython-3.8"]
        page = Path(folder) / "report.html"
        report = ["report", source, *options, "-o", page, "--force", *(["--moments", moments] if moments else [])]
        sides = (["run", source, *options], [*report, "--no-remedies"], report)
        for side in sides:
            measured(*side)
        rounds = [[measured(*side) for side in sides] for _ in range(arguments.rounds)]
        seconds, busy, peaks = (
            [statistics.median(each[side][what] for each in rounds) for side in range(3)] for what in range(3)
        )
        print(
            f"run {seconds[0]:.2f} s, report {seconds[2]:.2f} s; by processor time {busy[0]:.2f} and {busy[2]:.2f} s, "
            f"{busy[2] / busy[0]:.1f} × the run ({busy[1] / busy[0]:.1f} × without remedies)\n"
            f"process peak {peaks[0]:.0f} MiB, report {peaks[2]:.0f} MiB; page {page.stat().st_size / 1e6:.1f} MB"
        )
        print(in_chromium(page))


if __name__ == "__main__":
    main()
