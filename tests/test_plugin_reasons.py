"""The causes that the pytest plugin reports for an exceeded limit, from a recorded test alone."""

from histories import History

from replay.analysis.metrics import metrics_of
from replay.config import load_config
from replay.gates.baselines import Figure
from replay.gates.judging import judge
from replay.gates.tolerances import Limit
from replay.pytest_plugin.explanations import Compared, causes
from replay.pytest_plugin.measuring import measure_recording
from replay.pytest_plugin.worker_process import AFTER, OVER, TEST
from replay.simulation.run import run
from replay.trace import Domain


def test_live_blocks_at_the_peak_need_one_simulation_for_all_dimensions(monkeypatch):
    history = History()
    history.mark(0)
    blocks = [*history.mallocs(3, 100_000, Domain.RAW), history.malloc(64)]
    history.mark(1)
    history.free(*blocks)
    history.mark(2)
    trace, stack = history.trace(TEST, AFTER, OVER), load_config("cpython-3.12")
    seen = measure_recording(trace, stack)
    figures = {name: Figure(value=value, low=value, high=value) for name, value in metrics_of(seen.summary).items()}
    findings = judge(figures, None, [Limit("resident_bytes_peak", "<=", 1024)])
    runs = []
    simulate = run
    monkeypatch.setattr(
        "replay.gates.causes.run", lambda *arguments, **options: runs.append(1) or simulate(*arguments, **options)
    )

    lines = causes(findings, Compared(trace, seen, None, None, stack))

    assert lines == [
        "live at the peak, by size class: 128.0 KiB 3 blocks, 293.0 KiB",
        "live at the peak, by domain: raw 3 blocks, 293.0 KiB",
        f"live at the peak, by phase: {TEST} 4 blocks, 293.0 KiB",
    ]
    assert len(runs) == 1
