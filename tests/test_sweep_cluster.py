"""Sweeps on a Dask cluster: the same rows as with threads, even if workers die; other versions are refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROGRAM_SECONDS, interrupted_sweep
from histories import seeded

import replay
from replay.sources.parquet import write_trace
from replay.support.errors import ReplayError
from replay.support.version import identity
from replay.sweeps import cluster as clusters
from replay.sweeps.cluster import Cluster, work
from replay.sweeps.configurations import Resolver, stack_key
from replay.sweeps.journal import OUTCOMES
from replay.sweeps.outcomes import make_task
from replay.sweeps.plan import make_plan
from replay.sweeps.results import NOT_COMPARED, read_results
from replay.sweeps.threads import Threads
from replay.sweeps.traces import decode, find_inputs

pytestmark = pytest.mark.system

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")

PACKAGE = Path(replay.__file__).parent
SMALL = {"duration": "1 ms", "streams": {"few": {
    "arrivals": {"kind": "fixed", "rate": "100000/s"}, "size": {"kind": "uniform", "min": 1, "max": 900},
    "lifetime": {"kind": "exponential", "mean": "1 ms"},
}}}  # fmt: skip
VARY = {"allocator": ["cpython-3.8"], "glibc.top_pad": {"from": 0, "to": 60_000, "step": 1000}}
"""61 configurations, and the default."""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(seeded(3, 20_000).trace(), path)
    return str(path)


def rows(results):
    return results.frame.drop(NOT_COMPARED)


class Poison:
    """Kills the process that unpickles it and compares it with a version."""

    def __ne__(self, other):
        os.kill(os.getpid(), signal.SIGKILL)


class Killing(Cluster):
    """Kills a worker when half of the runs are done, and stores which one."""

    killed: int | None = None

    def outcomes(self, tasks):
        for number, outcome in enumerate(super().outcomes(tasks)):
            if number == len(tasks) // 2:
                self.killed = self.workers()[0]
                os.kill(self.killed, signal.SIGKILL)
            yield outcome

    def workers(self):
        return sorted(self._client.run(os.getpid).values())


def test_all_rows_occur_once_although_one_of_four_workers_is_killed(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    expected = replay.sweep(plan, engine=Threads(2))  # first, so that only one compiles
    with Killing("local:4") as engine:
        before = engine.workers()
        results = replay.sweep(plan, out=out, engine=engine)
        assert len(before) == 4
        assert engine.killed in before
        assert engine.killed not in engine.workers()
    assert results.frame["status"].to_list() == ["done"] * 62
    keys = [json.loads(line)["key"] for line in (out / OUTCOMES).read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 62
    assert rows(results).equals(rows(expected))


def test_a_cluster_has_the_same_results_as_threads_for_files_urls_and_seeds(source, tmp_path):
    workload = tmp_path / "w.yaml"
    workload.write_text(json.dumps(SMALL))
    vary = {"allocator": ["cpython-3.8", "cpython-3.12"], "MALLOC_ARENA_MAX": ["default", 1]}
    plans = [
        ({"sources": [Path(source).as_uri(), str(workload)], "vary": vary, "trim_every": "100 us"}, {}),
        ({"sources": [str(workload)], "seeds": [1, 2], "vary": vary}, {}),
        ({"sources": [source], "vary": {**VARY, "pymalloc.alignment": [8, 16]}}, {"trials": 20}),
    ]
    expected = [rows(replay.sweep(plan, **options)) for plan, options in plans]
    assert [frame.height for frame in expected] == [8, 8, 20]
    with Cluster("local:2") as engine:
        found = [rows(replay.sweep(plan, engine=engine, **options)) for plan, options in plans]
    assert [one.equals(other) for one, other in zip(found, expected, strict=True)] == [True] * 3


def test_a_worker_decodes_a_trace_once_and_keeps_the_last_eight(tmp_path, monkeypatch):
    decoded = Counter()
    monkeypatch.setattr(clusters, "decode", lambda what: decoded.update([what.seed]) or decode(what))
    monkeypatch.setattr(clusters, "_traces", {})
    path = tmp_path / "w.yaml"
    path.write_text(json.dumps(SMALL))
    inputs = find_inputs([str(path)], list(range(9)))
    stack = Resolver(make_plan({"vary": VARY})).default
    for what in [*inputs[:8], *inputs[:8], inputs[8], inputs[0]]:
        assert work(make_task(what, stack)).status == "done"
    assert decoded == {0: 2, **dict.fromkeys(range(1, 9), 1)}


def test_a_task_of_another_replay_or_another_model_is_not_done(source, monkeypatch):
    (what,) = find_inputs([source], [])
    stack = Resolver(make_plan({"vary": VARY})).default
    task = make_task(what, stack)
    with pytest.raises(ReplayError, match="a worker has another version of a third-party allocator model"):
        work(replace(task, key=task.key.replace(stack_key(stack.stack), "0" * 64)))
    monkeypatch.setattr(clusters, "identity", lambda: "0.0.1+abc")
    with pytest.raises(ReplayError, match=r"a worker has replay 0\.0\.1\+abc, but the sweep was started by "):
        work(task)


@pytest.mark.parametrize("address", ["local:0", "local:", "local:4x", "local:1000", "nowhere", "tcp://", "tcp://host"])
def test_an_invalid_address_is_refused_with_two_examples(address):
    with pytest.raises(ReplayError) as refusal:
        Cluster(address)
    assert str(refusal.value) == f"--cluster {address}: write it like local:4 or tcp://scheduler:8786"


def test_the_wait_for_a_scheduler_has_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"tcp://127.0.0.1:{deaf.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(ReplayError, match=rf"--cluster {address}: no scheduler answers within 1 s \("):
            Cluster(address, timeout_s=1)
        assert time.monotonic() - begun < 10
    with pytest.raises(ReplayError, match=rf"--cluster {address}: no scheduler answers within 1 s \("):
        Cluster(address, timeout_s=1)


def start_worker(address, folder):
    """A worker of a scheduler that imports `replay` from a folder."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    return subprocess.Popen(
        [*command, "--no-dashboard", "--local-directory", str(folder)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def scheduler():
    """The address of a scheduler without workers."""
    with distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=51) as scheduler:
        yield scheduler.scheduler_address


def test_a_worker_with_another_replay_or_none_is_refused_before_anything_runs(scheduler, tmp_path):
    other, none = tmp_path / "other", tmp_path / "none"
    shutil.copytree(PACKAGE, other / "replay", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "replay" / "support" / "units.py").write_text(
        (PACKAGE / "support" / "units.py").read_text() + "\nEDITED = True\n"
    )
    (none / "replay").mkdir(parents=True)
    (none / "replay" / "__init__.py").touch()
    for folder, printed in (
        (
            other,
            rf"has replay 0\.\d+\.\d+\+[0-9a-f]{{8}}, and this is {identity().replace('+', '[+]')}; install the same",
        ),
        (none, r"a worker cannot report its version of replay \(.*No module named .*\); install "),
    ):
        worker = start_worker(scheduler, folder)
        try:
            with pytest.raises(ReplayError, match=printed):
                Cluster(scheduler)
        finally:
            worker.terminate()
            worker.wait()


def test_a_run_that_kills_its_workers_is_a_row_with_its_error_and_tried_again_the_next_time(source, tmp_path):
    plan, out = {"sources": [source], "vary": {"allocator": ["cpython-3.8"]}}, tmp_path / "out"

    class Deadly(Cluster):
        def outcomes(self, tasks):
            yield from super().outcomes([replace(task, version=Poison()) for task in tasks])

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), Deadly("local:1") as engine:
        results = replay.sweep(plan, out=out, engine=engine)
    printed = "1 worker died during this run; it may need more memory than they have"
    assert results.frame.select("status", "error").rows() == [("failed", printed)]
    assert replay.sweep(plan, out=out, resume=True).frame["status"].to_list() == ["done"]


LOSES = """
import sys, replay
from replay.sweeps.cluster import Cluster

class Watched(Cluster):
    def outcomes(self, tasks):
        for outcome in super().outcomes(tasks):
            yield outcome
            print("one", flush=True)

with Watched({address!r}) as engine:
    replay.sweep({plan!r}, out={out!r}, engine=engine)
"""


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_sweep_and_threads_do_the_rest(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    scheduler = subprocess.Popen([*command, "--no-dashboard"], stderr=subprocess.DEVNULL)
    worker = start_worker(address, tmp_path)
    program = LOSES.format(address=address, plan=plan, out=str(out))
    sweeping = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        sweeping.stdout.readline()
        scheduler.kill()
        _, printed = sweeping.communicate(timeout=PROGRAM_SECONDS)
    finally:
        for process in (sweeping, worker, scheduler):
            process.kill()
            process.wait()
    assert printed.splitlines()[-1].endswith(
        "the connection to the scheduler is lost; with --out, finished runs are saved, and --resume continues"
    )
    kept = read_results(out)
    assert 0 < kept.count("done") < 62
    assert kept.count("done") + kept.count("missing") == 62
    assert rows(replay.sweep(plan, out=out, resume=True)).equals(rows(replay.sweep(plan)))


@pytest.mark.slow
def test_ctrl_c_ends_a_local_cluster_without_a_word_of_dask(source, tmp_path):
    out = tmp_path / "out"
    grid = ("--grid", "glibc.top_pad=0..2000000:+1000")
    code, printed = interrupted_sweep(source, "-a", "cpython-3.8", "--cluster", "local:2", *grid, "--out", out)
    assert code == 130
    assert (
        printed.splitlines()[-1]
        == f"interrupted; finished runs are saved in {out}; add --resume to the same command to continue"
    )
    assert "distributed" not in printed
    assert 0 < read_results(out).done.height < 2001
