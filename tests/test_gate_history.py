"""The history of checks: rows for each commit, and changes of the level of a metric."""

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace as Named

import polars as pl
import pytest
from conftest import PROGRAM_SECONDS

from replay.gates.history import add_rows, find_steps, read_history, steps
from replay.support.atomic_files import open_locked
from replay.support.errors import OutputError, ReplayError


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], []),
        ([5], []),
        ([5, 5, 5], []),
        ([5, 5, 7, 7], [(2, 5, 7)]),
        ([5, 5, 7, 5, 5], [(2, 5, 7), (3, 7, 5)]),
        ([5, 5, 7, 7, 4], [(2, 5, 7), (4, 7, 4)]),
        ([100, 101, 99, 100, 101, 150, 151, 149], [(5, 100, 150)]),
        ([100, 101, 99, 140, 100, 101, 99, 100], []),
    ],
)
def test_a_step_is_where_the_level_changes_by_more_than_neighbours_differ(values, found):
    assert steps(values) == found


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Returns a function that commits and checks a case whose trace has the given number of blocks."""
    from replay.gates.cases import Suite
    from replay.gates.checking import check
    from replay.gates.tolerances import parse_rules

    def git(*words):
        about = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *about, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q", ".")

    def check_with(size):
        rows = [f"{row},0,0,obj,{row},{size}" for row in range(3000)]
        (tmp_path / "trace.csv").write_text("\n".join(["time_ns,thread,op,domain,block,size", *rows]))
        git("add", "-A")
        git("commit", "-q", "--allow-empty", "-m", str(size))
        suite = Suite.model_validate({"cases": {"a": {"source": "trace.csv", "allocator": "cpython-3.12"}}})
        report = check(suite, None, tmp_path, rules=parse_rules(["blowup<=100"]))
        add_rows(tmp_path / "history.parquet", report, tmp_path)
        return git("rev-parse", "HEAD")

    check_with.path = tmp_path / "history.parquet"
    return check_with


@pytest.mark.system
def test_the_commit_that_changed_the_level_of_a_metric_is_found(checked):
    commits = [checked(size) for size in (32, 32, 48, 48)]
    frame = read_history(checked.path)
    assert frame["commit"].to_list() == commits
    assert frame["state"].to_list() == ["passed"] * 4
    (step,) = find_steps(frame, ["pool_bytes_peak"])
    assert (step.case, step.commit) == ("a", commits[2])
    assert (step.before, step.after) == (-(-3000 // 510) * 16384, -(-3000 // 340) * 16384)


@pytest.mark.system
def test_a_commit_that_is_checked_again_takes_the_place_of_its_row(checked, tmp_path):
    commit = checked(32)
    from replay.gates.cases import Suite
    from replay.gates.checking import check
    from replay.gates.tolerances import parse_rules

    suite = Suite.model_validate({"cases": {"a": {"source": "trace.csv", "allocator": "cpython-3.9"}}})
    add_rows(checked.path, check(suite, None, tmp_path, rules=parse_rules(["blowup<=100"])), tmp_path)
    assert read_history(checked.path)["commit"].to_list() == [commit]


@pytest.mark.system
def test_checks_that_end_at_once_all_add_their_rows(tmp_path):
    """Four processes that start together; each waits for the lock of the previous one."""
    code = """
import sys
from pathlib import Path
from types import SimpleNamespace as Named
from replay.gates.history import add_rows
name, folder = sys.argv[1], Path(sys.argv[2])
report = Named(cases=[Named(name=name, state="passed")], measured={name: Named(figures={})})
print("ready", flush=True)
sys.stdin.readline()
for case in range(5):
    add_rows(folder / "history.parquet", report, folder)
"""
    command = [sys.executable, "-c", code]
    checks = [subprocess.Popen([*command, name, tmp_path], stdin=-1, stdout=-1, text=True) for name in "abcd"]
    assert [check.stdout.readline() for check in checks] == ["ready\n"] * 4
    for check in checks:
        check.stdin.write("go\n")
        check.stdin.flush()
    assert [check.wait(PROGRAM_SECONDS) for check in checks] == [0] * 4
    assert sorted(read_history(tmp_path / "history.parquet")["case"]) == sorted("abcd" * 5)
    assert [path.name for path in tmp_path.iterdir()] == ["history.parquet"]


def test_rows_are_added_after_another_process_unlocks_the_history(tmp_path):
    path = tmp_path / "history.parquet"
    report = Named(cases=[Named(name="a", state="passed")], measured={"a": Named(figures={})})
    add_rows(path, report, tmp_path)
    with ThreadPoolExecutor(1) as thread:
        with open_locked(path, wait=True):  # ends before the executor, which waits for the thread
            adding = thread.submit(add_rows, path, report, tmp_path)
            while f"-> FLOCK  ADVISORY  WRITE {os.getpid()}" not in Path("/proc/locks").read_text():
                assert not adding.done()
            path.rename(tmp_path / "away.parquet")  # as a check does that replaces it
        assert adding.result() == 1
    assert read_history(path).height == 1


def test_a_failed_first_check_leaves_no_empty_history(tmp_path):
    report = Named(cases=[Named(name="a", state="passed")], measured={"a": Named(figures={})})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            add_rows(tmp_path / "history.parquet", report, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_not_a_history(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReplayError, match="is not a regular file"):
        read_history(tmp_path / "pipe")


def test_a_file_that_is_not_a_history_is_refused(tmp_path):
    with pytest.raises(ReplayError, match="the history does not exist"):
        read_history(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(ReplayError, match="is not a history"):
        read_history(tmp_path / "text.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ReplayError, match="lacks case, commit, date, replay_version, state"):
        read_history(tmp_path / "other.parquet")
