"""Summaries of the bundled workloads, compared with stored ones, so that every change is noticed.

After a change that is meant to change them, look at what it does to each file before it is committed:

    python -m tests.test_golden && git diff tests/golden
"""

import json
from pathlib import Path

import pytest

from replay.analysis.metrics import summarize
from replay.config import load_config
from replay.simulation.run import run
from replay.sources import open_source
from replay.support.bundled_files import workload_names

GOLDEN = Path(__file__).parent / "golden"
PRESETS = ("cpython-3.8", "cpython-3.12")
OTHERS = (
    ("web-service", "cpython-2.7"),
    ("web-service", "cpython-3.11-32bit"),
    ("web-service", "cpython-3.12-malloc"),
    ("web-service", "cpython-3.15-hugepages"),
    ("web-service", "ideal"),
    ("web-service", "bump"),
)
PAIRS = (*((workload, preset) for workload in workload_names() for preset in PRESETS), *OTHERS)


def play(workload, preset):
    """Returns the summary as JSON values, without the references, which have their own files."""
    recording = run(open_source(workload), load_config(preset), sample_every_ns=1 << 62)
    return json.loads(summarize(recording).model_dump_json())


@pytest.mark.parametrize(("workload", "preset"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_a_bundled_workload_has_the_stored_results(workload, preset):
    assert play(workload, preset) == json.loads((GOLDEN / f"{workload}-{preset}.json").read_text())


def test_every_golden_file_is_compared():
    assert {path.name for path in GOLDEN.iterdir()} == {f"{workload}-{preset}.json" for workload, preset in PAIRS}


if __name__ == "__main__":
    for stale in GOLDEN.glob("*.json"):
        stale.unlink()
    for pair in PAIRS:
        (GOLDEN / f"{'-'.join(pair)}.json").write_text(json.dumps(play(*pair), indent=2) + "\n")
