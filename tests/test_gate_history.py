"""The history of checks: rows a commit, and where a metric stepped."""

import subprocess

import polars as pl
import pytest

from replay.gates.history import add_rows, find_steps, read_history, steps
from replay.support.errors import ReplayError


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
    """A function that checks a case in a folder under git whose trace takes so many blocks."""
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


def test_the_commit_where_a_metric_stepped_is_found(checked):
    commits = [checked(size) for size in (32, 32, 48, 48)]
    frame = read_history(checked.path)
    assert frame["commit"].to_list() == commits
    assert frame["state"].to_list() == ["passed"] * 4
    (step,) = find_steps(frame, ["pool_bytes_peak"])
    assert (step.case, step.commit) == ("a", commits[2])
    assert (step.before, step.after) == (-(-3000 // 510) * 16384, -(-3000 // 340) * 16384)


def test_a_commit_that_is_checked_again_takes_the_place_of_its_row(checked, tmp_path):
    commit = checked(32)
    from replay.gates.cases import Suite
    from replay.gates.checking import check
    from replay.gates.tolerances import parse_rules

    suite = Suite.model_validate({"cases": {"a": {"source": "trace.csv", "allocator": "cpython-3.9"}}})
    add_rows(checked.path, check(suite, None, tmp_path, rules=parse_rules(["blowup<=100"])), tmp_path)
    assert read_history(checked.path)["commit"].to_list() == [commit]


def test_what_is_no_history_is_refused(tmp_path):
    with pytest.raises(ReplayError, match="there is no history"):
        read_history(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(ReplayError, match="is no history"):
        read_history(tmp_path / "text.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ReplayError, match="lacks case, commit, date, replay_version, state"):
        read_history(tmp_path / "other.parquet")
