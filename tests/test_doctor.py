"""`replay doctor`: what works on this machine, what does not, and what to do."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import invoke, output_of

from replay.commands import doctor_checks
from replay.commands.doctor_checks import FAILED, MISSING, OK, Check
from replay.support.errors import ReplayError

GROUPS = ["versions", "simulating", "recording", "verifying", "optional"]


def reported(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> tuple[int, str]:
    """Returns exit code and output of a machine with these results."""
    monkeypatch.setattr(doctor_checks, "all_checks", lambda: iter(checks))
    result = invoke("doctor")
    return result.exit_code, result.stdout


@pytest.mark.system
def test_this_machine_simulates_and_records() -> None:
    report = json.loads(output_of("doctor", "--json"))
    checks = [Check(**each) for each in report["checks"]]
    assert report["works"]
    assert list(dict.fromkeys(check.group for check in checks)) == GROUPS
    assert [check for check in checks if check.state == FAILED] == []
    found = {(check.group, check.name): check.found for check in checks}
    assert found["simulating", "trial"] == "80,102 events on cpython-3.11, all invariants hold" or (
        sys.version_info[:2] != (3, 11)
    )
    assert "events of a small program; a recording takes 145.3 MiB of shared memory" in found["recording", "trial"]
    assert all(check.advice for check in checks if check.state != OK)


def test_a_missing_extra_has_advice_and_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = Check("optional", "memray", MISSING, "not installed", "pip install 'alloc-replay[memray]' to read captures")
    code, shown = reported(monkeypatch, Check("versions", "numpy", OK, "2.4"), extra)
    assert code == 0
    assert shown.splitlines() == [
        "versions",
        "  ok      numpy        2.4",
        "optional",
        "  missing memray       not installed",
        "          pip install 'alloc-replay[memray]' to read captures",
        "next: replay run web-service",
    ]


def test_a_failure_has_advice_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Check("simulating", "cache", FAILED, "/x: Read-only file system", "set REPLAY_CACHE_DIR")
    code, shown = reported(monkeypatch, broken)
    assert code == 1
    assert shown.splitlines()[1:] == [
        "  failed  cache        /x: Read-only file system",
        "          set REPLAY_CACHE_DIR",
        "1 failed: simulating cache",
    ]


def test_a_trial_that_fails_shows_the_message_of_its_error() -> None:
    def fail() -> str:
        raise ReplayError("no shared memory")

    assert doctor_checks._tried("recording", "trial", fail, "x") == Check(
        "recording", "trial", FAILED, "no shared memory", "x"
    )
    assert doctor_checks._tried("a", "b", lambda: {}["key"], "x").found == "KeyError: 'key'"


def test_a_cache_folder_that_cannot_be_made_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLAY_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(doctor_checks, "_simulate", lambda: "")
    cache = list(doctor_checks._simulating())[1]
    assert (cache.state, cache.found) == (FAILED, f"{tmp_path}/file/cache: Not a directory")


def test_a_library_that_cannot_be_imported_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    check = doctor_checks._library("simpy")
    assert (check.state, check.advice) == (FAILED, "pip install --force-reinstall simpy")


def test_an_interpreter_that_cannot_be_recorded_is_listed_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "python3.12"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert doctor_checks._interpreter(str(broken)).found.endswith("not a working Python interpreter")


def test_interpreters_are_found_in_the_path_and_each_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("python3.12", "python3.99", "python3.9-config", "python3"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python3.13").symlink_to("python3.12")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path)] * 2))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    assert doctor_checks._interpreters() == [str(tmp_path / "python3.12"), str(tmp_path / "python3.99")]


def test_every_extra_that_doctor_names_is_declared() -> None:
    extras = {extra for extra, _ in doctor_checks._EXTRAS.values() if extra}
    assert [doctor_checks._distribution(extra) for extra in sorted(extras)] == [
        f"alloc-replay[{extra}]" for extra in ("charts", "cluster", "memray", "search")
    ]
