"""Suites, baselines and `replay check`, by their command line and their files."""

import json
import sys
from xml.etree import ElementTree

import pytest

from replay.config import load_config
from replay.gates import baselines
from replay.gates.baselines import Figure
from replay.gates.cases import Case
from replay.gates.causes import explain
from replay.gates.checking import CaseReport, Report
from replay.gates.judging import Finding
from replay.gates.tolerances import Tolerance
from replay.reports.checks.junit import render as render_junit
from replay.reports.checks.sentences import describe
from replay.reports.figures import format_pair
from replay.sources import open_source

pytestmark = pytest.mark.usefixtures("outside_ci")

BLOCKS_A_POOL = 510
"""Of 32 bytes, in a pool of 16 KiB with a header of 48."""


def write_blocks(path, *groups):
    """A trace of groups (blocks, bytes, phase or None) that are never freed."""
    rows, block = ["time_ns,thread,op,domain,block,size"], 0
    for phase, (count, size) in enumerate(groups):
        rows.append(f"{block},0,mark,obj,0,{phase}")
        for _ in range(count):
            rows.append(f"{block},0,malloc,obj,{block},{size}")
            block += 1
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def suite(tmp_path):
    """Two cases with one trace each; returns a function that writes the first one's trace again."""

    def write(*groups):
        write_blocks(tmp_path / "one.csv", *groups)

    write((3000, 32))
    write_blocks(tmp_path / "two.csv", (100, 600))
    (tmp_path / "replay.toml").write_text(
        """
        tolerances = ["pool_bytes_peak:+0", "arenas_live:+0"]
        [cases.one]
        source = "one.csv"
        allocator = "cpython-3.12"
        allow_changed_trace = true
        [cases.two]
        source = "two.csv"
        allocator = "cpython-3.12"
        tolerances = ["blowup<=1.9"]
        """
    )
    return write


def test_a_baseline_has_a_line_for_each_metric_and_its_origin(suite, replay, tmp_path):
    code, out, _ = replay("baseline")
    assert code == 0
    assert "measured: one, two" in out
    text = (tmp_path / "replay-baseline.json").read_text()
    content = json.loads(text)
    assert content["cases"]["one"]["metrics"]["pool_bytes_peak"] == 6 * 16384
    assert '    "pool_bytes_peak": 98304,\n' in text
    assert content["cases"]["one"]["case"] == {
        "allocator": "cpython-3.12", "allow_changed_trace": True, "source": "one.csv",
    }  # fmt: skip
    assert len(content["cases"]["one"]["trace"]) == 64


def test_an_unchanged_case_passes_and_a_baseline_is_not_overwritten(suite, replay):
    replay("baseline")
    assert replay("check")[:2] == (0, "passed  one\npassed  two\n2 cases, 2 passed\n")
    code, _, err = replay("baseline")
    assert code == 2
    assert "already has the case one" in err
    assert replay("baseline", "--force")[0] == 0


def test_a_worse_case_fails_and_reports_the_difference(suite, replay):
    replay("baseline")
    suite((3000, 40))
    code, out, _ = replay("check")
    assert code == 1
    assert "failed  one (one.csv on cpython-3.12)" in out
    assert "worse   pool_bytes_peak  96.0 KiB -> 144.0 KiB (+48.0 KiB, +50.0 %; allowed: none)" in out
    assert "passed  two" in out
    assert replay("check", "-t", "pool_bytes_peak:50%")[0] == 0
    assert replay("check", "-t", "pool_bytes_peak:49.9%")[0] == 1
    assert replay("check", "-t", "pool_bytes_peak:+48KiB")[0] == 0


def test_a_better_case_passes_and_only_ratchet_stores_it(suite, replay, tmp_path):
    replay("baseline")
    before = (tmp_path / "replay-baseline.json").read_text()
    suite((2000, 32))
    code, out, _ = replay("check")
    assert code == 0
    assert "better  pool_bytes_peak  96.0 KiB -> 64.0 KiB" in out
    assert "2 passed; 1 figure is better than the baseline (--ratchet accepts it as the new baseline)" in out
    assert (tmp_path / "replay-baseline.json").read_text() == before
    assert replay("check", "--ratchet")[0] == 0
    after = json.loads((tmp_path / "replay-baseline.json").read_text())["cases"]
    assert after["one"]["metrics"]["pool_bytes_peak"] == 4 * 16384
    assert (
        after["one"]["metrics"]["resident_bytes_peak"]
        == json.loads(before)["cases"]["one"]["metrics"]["resident_bytes_peak"]
    )
    suite((2500, 32))
    assert replay("check")[0] == 1


def test_update_stores_current_cases_and_removes_missing_ones(suite, replay, tmp_path):
    replay("baseline")
    suite((3000, 40))
    (tmp_path / "replay.toml").write_text('[cases.one]\nsource = "one.csv"\nallocator = "cpython-3.12"\n')
    assert replay("check", "--update")[0] == 0
    assert list(json.loads((tmp_path / "replay-baseline.json").read_text())["cases"]) == ["one"]
    assert replay("check")[0] == 0


def test_new_and_missing_cases_are_reported_and_fail(suite, replay, tmp_path):
    replay("baseline")
    text = (tmp_path / "replay.toml").read_text()
    (tmp_path / "replay.toml").write_text(text.replace("[cases.two]", "[cases.three]"))
    code, out, _ = replay("check")
    assert code == 1
    assert "new     three" in out
    assert "gone    two" in out
    assert "1 passed, 1 new, 1 gone" in out


def test_a_limit_is_judged_without_a_baseline(replay, tmp_path):
    write_blocks(tmp_path / "one.csv", (3000, 32))
    assert replay("check", "one.csv", "-a", "cpython-3.12", "-t", "arenas_live<=1")[0] == 0
    code, out, _ = replay("check", "one.csv", "-a", "cpython-3.12", "-t", "arenas_live<1")
    assert code == 1
    assert "over    arenas_live  1, and arenas_live<1 is the limit" in out


def test_cases_of_a_baseline_are_checked_without_a_suite(replay, tmp_path):
    write_blocks(tmp_path / "one.csv", (3000, 32))
    replay("baseline", "one.csv", "-a", "cpython-3.12,cpython-3.9")
    code, out, _ = replay("check")
    assert code == 0
    assert "passed  one@cpython-3.12\npassed  one@cpython-3.9\n" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data.update(replay="0.0.1"), "was written by replay 0.0.1"),
        (lambda data: data.update(format=99), "has format 99"),
        (lambda data: data.pop("cases"), "is not a baseline that replay wrote"),
        (lambda data: data["cases"]["two"].update(trace="0" * 64), "differs from the baseline's trace"),
        (lambda data: data["cases"]["two"].update(stack="0" * 64), "has another configuration"),
        (lambda data: data["cases"]["two"]["metrics"].pop("arenas_live"), "the baseline has no arenas_live"),
        (lambda data: data["cases"]["two"]["metrics"].update(arena_live=3), "unknown metric 'arena_live'"),
    ],
)
def test_a_baseline_that_cannot_be_compared_with_is_an_error(suite, replay, tmp_path, change, expected):
    replay("baseline")
    path = tmp_path / "replay-baseline.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    code, out, err = replay("check")
    assert (code, out) == (2, "")
    assert expected in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cases.a]\nsourc = 'x'", "cases.a.sourc: unknown key; did you mean 'source'?"),
        ("[cases.a]\nallocator = 'ideal'", "name either a source or a program to record"),
        ("[cases.a]\nsource = 'x'\n[cases.a]\nsource = 'y'", "is not valid TOML"),
        ("tolerances = ['blowup']", "'blowup' is not a rule"),
        ("tolerances = ['blow:2%']", "unknown metric 'blow'"),
        ("[cases.a]\nsource = 'x'\ntolerances = ['syscalls:x']", "'x' is not a number"),
        ("[cases.a]\nsource = 'one.csv'\nallocator = 'cpyton-3.12'", "did you mean"),
        ("[cases.a]\nsource = 'nowhere.csv'", "the file does not exist"),
    ],
)
def test_a_suite_with_a_mistake_is_an_error(replay, tmp_path, text, expected):
    write_blocks(tmp_path / "one.csv", (10, 32))
    (tmp_path / "replay.toml").write_text(text)
    code, out, err = replay("check", "-t", "blowup<=9")
    assert (code, out) == (2, "")
    assert expected in err


def test_a_suite_can_be_in_pyproject(replay, tmp_path):
    write_blocks(tmp_path / "one.csv", (10, 32))
    content = "[tool.replay.cases.a]\nsource = 'one.csv'\ntolerances = ['arenas_live<=1']\n"
    (tmp_path / "pyproject.toml").write_text(content)
    assert replay("check")[:2] == (0, "passed  a\n1 case, 1 passed\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check"], "nothing to measure"),
        (["check", "one.csv"], "the baseline does not exist"),
        (["check", "one.csv", "-t", "x"], "is not a rule"),
        (["check", "one.csv", "--update", "--ratchet"], "choose one"),
        (["check", "one.csv", "--report", "junt"], "did you mean 'junit'?"),
        (["check", "--record"], "name it after --"),
        (["check", "--record", "--", "python"], "has nothing to run"),
        (["check", "--name", "x", "one.csv"], "--name requires --record"),
        (["check", "one.csv", "--against", "none.parquet"], "the file does not exist"),
        (["baseline", "one.csv", "./one.csv"], "two cases would have this name"),
        (["check", "-a", "ideal"], "require a SOURCE"),
        (["history", "none.parquet"], "the history does not exist"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(replay, tmp_path, words, expected):
    write_blocks(tmp_path / "one.csv", (10, 32))
    code, out, err = replay(*words)
    assert (code, out) == (2, "")
    assert expected in err


def test_blocks_that_grew_over_a_size_class_are_named_with_their_phase(tmp_path):
    write_blocks(tmp_path / "old.csv", (500, 100), (2000, 48), (100, 700))
    write_blocks(tmp_path / "new.csv", (500, 100), (2000, 56), (100, 700))
    cause = explain(open_source("old.csv"), open_source("new.csv"), load_config("cpython-3.12"))
    assert cause.moved == ("2,000 blocks of domain obj in phase phase 1 have size class 64 B instead of 48 B",)
    by_class = {each.group: (each.blocks, each.bytes) for each in cause.at_peak if each.dimension == "size_class"}
    assert by_class == {"48 B": (-2000, -96000), "64 B": (2000, 112000)}
    by_phase = {each.group: (each.blocks, each.bytes) for each in cause.at_peak if each.dimension == "phase"}
    assert by_phase == {"phase 1": (0, 16000)}


def test_causes_name_live_blocks_by_phase_domain_and_size(tmp_path, replay):
    write_blocks(tmp_path / "old.csv", (500, 100), (20, 8192))
    write_blocks(tmp_path / "new.csv", (500, 100), (29, 8192))  # each touches new pages: the last makes the peak
    code, out, _ = replay("check", "new.csv", "--against", "old.csv", "-a", "cpython-3.12")
    assert code == 1
    assert "live bytes at the peak grew by 72.0 KiB (9 more blocks) in phase phase 1\n" in out
    assert "live bytes at the peak grew by 72.0 KiB (9 more blocks) in domain obj\n" in out
    assert "live bytes at the peak grew by 72.0 KiB (9 more blocks) in size class 8.00 KiB\n" in out


def test_a_call_site_is_named_where_the_traces_have_them(tmp_path):
    from histories import History

    from replay import MemoryTrace
    from replay.trace import Metadata, Site

    def trace(count, line):
        history = History()
        for _ in range(count):
            history.malloc(8192)
        events = history.events()
        import numpy as np

        site = (np.arange(events.rows) >= 100).astype(np.uint32)
        sites = (Site("load", "a.py", 3), Site("keep", "b.py", line))
        return MemoryTrace([events._replace(site=site)], Metadata(sites=sites))

    cause = explain(trace(150, line=5), trace(500, line=7), load_config("cpython-3.12"))
    (change,) = [each for each in cause.at_peak if each.dimension == "site"]
    assert (change.group, change.blocks, change.bytes, change.share) == ("keep (b.py:7)", 350, 350 * 8192, 1.0)


def failing(suite, replay):
    replay("baseline")
    suite((3000, 40))


def test_github_gets_annotations_and_a_summary_by_itself(suite, replay, tmp_path, monkeypatch):
    failing(suite, replay)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, out, _ = replay("check")
    assert code == 1
    assert "::error title=one%3A pool_bytes_peak::pool_bytes_peak: 96.0 KiB -> 144.0 KiB (+48.0 KiB, +50.0 %25" in out
    assert summary.read_text().startswith("before\n### ❌ Memory got worse\n")
    assert "| `pool_bytes_peak` | 96.0 KiB | 144.0 KiB | +48.0 KiB, +50.0 % | worse |" in summary.read_text()


def test_gitlab_gets_its_code_quality_report_by_itself(suite, replay, tmp_path, monkeypatch):
    failing(suite, replay)
    monkeypatch.setenv("GITLAB_CI", "true")
    assert replay("check")[0] == 1
    (entry,) = json.loads((tmp_path / "gl-code-quality-report.json").read_text())
    assert entry["check_name"] == "replay: pool_bytes_peak"
    assert entry["location"] == {"path": "one.csv", "lines": {"begin": 1}}
    assert (entry["severity"], len(entry["fingerprint"])) == ("major", 64)


def test_junit_has_a_suite_a_case_and_a_test_a_rule(suite, replay, tmp_path):
    failing(suite, replay)
    assert replay("check", "--report", "junit=junit.xml")[0] == 1
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    counted = {each.get("name"): (each.get("tests"), each.get("failures")) for each in root}
    assert counted == {"one": ("2", "1"), "two": ("3", "0")}
    (failure,) = root.iter("failure")
    assert failure.get("message") == "96.0 KiB -> 144.0 KiB (+48.0 KiB, +50.0 %; allowed: none)"


def test_junit_with_control_characters_in_names_is_xml():
    case = CaseReport("a\x00\x1b\x0b\ufffe", "new", note="b\x08\x0c\ud800")
    root = ElementTree.fromstring(render_junit(Report((case,))).encode())
    (failure,) = root.iter("failure")
    assert (root[0].get("name"), failure.get("message")) == ("a\\x00\\x1b\\x0b\\ufffe", "b\\x08\\x0c\\ud800")


def test_the_benchmark_report_has_a_value_a_case_and_metric(suite, replay, tmp_path):
    replay("baseline")
    assert replay("check", "--report", "benchmark=b.json")[:2] == (0, "")
    entries = json.loads((tmp_path / "b.json").read_text())
    assert {"name": "one: pool_bytes_peak", "unit": "bytes", "value": 98304.0} in entries
    assert len(entries) == 5


def test_json_has_every_finding(suite, replay):
    failing(suite, replay)
    code, out, _ = replay("check", "--json")
    assert code == 1
    printed = json.loads(out)
    assert printed["failed"] is True
    finding = next(each for each in printed["cases"][0]["findings"] if each["metric"] == "pool_bytes_peak")
    assert (finding["status"], finding["before"]["value"], finding["now"]["value"]) == ("worse", 98304, 147456)


def test_checks_of_several_commits_make_a_history_with_its_step(suite, replay, monkeypatch):
    replay("baseline")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    for commit, size in (("a" * 40, 32), ("b" * 40, 32), ("c" * 40, 40)):
        suite((3000, size))
        monkeypatch.setenv("GITHUB_SHA", commit)
        replay("check", "--history", "history.parquet")
    code, out, _ = replay("history", "history.parquet", "--metric", "pool_bytes_peak")
    assert code == 0
    assert "cccccccccccc  one: pool_bytes_peak 96.0 KiB -> 144.0 KiB" in out
    code, _, err = replay("history", "history.parquet", "--case", "ones")
    assert (code, "did you mean 'one'?" in err) == (2, True)


def test_keep_replaces_no_file_without_force_and_is_refused_before_the_recording(refused, tmp_path):
    (tmp_path / "job.parquet").write_text("of the user")
    printed = refused("baseline", "--record", "--keep", "job.parquet", "--", "job.py")
    assert (
        printed == f"replay: {tmp_path}/job.parquet: already exists; choose another name or overwrite it with --force\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["job.parquet"]


def test_keep_requires_a_recording(refused):
    message = "replay: --keep requires --record; other cases keep their sources\n"
    assert refused("baseline", "web-service", "--keep", "web.parquet") == message


def test_the_next_command_after_a_baseline_reads_its_file(suite, replay, tmp_path):
    out = replay("baseline", "--baseline", "other.json")[1]
    assert out.splitlines()[-1] == "next: replay check --baseline other.json"
    assert replay("check", "--baseline", "other.json")[0] == 0


def test_the_accepted_difference_of_whole_numbers_is_whole():
    rule = Tolerance("page_faults", 0, 0.05)
    now, before = Figure(value=964, low=964, high=964), Figure(value=842, low=842, high=842)
    finding = Finding("page_faults", "worse", now, rule, before, allowed=58.1)
    assert describe(finding) == "842 -> 964 (+122, +14.5 %; allowed: +58)"


@pytest.mark.parametrize(
    ("before", "now", "texts"),
    [
        (33.06 * 2**20, 42.34 * 2**20, ("33.06 MiB", "42.34 MiB")),
        (6.8867 * 2**20, 6.8789 * 2**20, ("6.8867 MiB", "6.8789 MiB")),
        (1000 * 2**10, 1.02 * 2**20, ("0.9766 MiB", "1.0200 MiB")),
        (96 * 2**10, 144 * 2**10, ("96.0 KiB", "144.0 KiB")),
        (0, 4096, ("0 B", "4.00 KiB")),
        (8192, 8192, ("8.00 KiB", "8.00 KiB")),
    ],
)
def test_two_figures_have_the_digits_that_their_difference_needs(before, now, texts):
    assert format_pair("resident_bytes_peak", before, now) == texts


def test_a_baseline_keeps_only_details_that_rules_name():
    one = baselines.Figure(value=1, low=1, high=1)
    figures = {"resident_bytes_peak": one, "syscall_bytes.mmap": one}
    measured = baselines.Measured(case=Case(source="web-service"), trace=None, stack="", figures=figures)
    assert baselines.without_details(measured).figures == {"resident_bytes_peak": one}
    assert baselines.without_details(measured, ["syscall_bytes.mmap"]).figures == figures


PROGRAM = """
import sys
kept = []
for number in range(3000):
    kept.append(bytes({size}))
buffer = bytearray({buffer})
"""


@pytest.mark.slow
@pytest.mark.system
def test_a_program_that_is_recorded_now_passes_unchanged_and_fails_with_the_cause(replay, tmp_path):
    program = tmp_path / "job.py"
    program.write_text(PROGRAM.format(size=10, buffer=60_000))
    keeping = ("baseline", "--record", "--keep", "job.parquet", "--", "python", "job.py")
    code, out, _ = replay(*keeping)
    assert (code, out.splitlines()[2:]) == (
        0,
        [f"written: {tmp_path}/job.parquet, the recording of job with the median peak", "next: replay check"],
    )
    for _ in range(3):
        assert replay("check", "--record", "--", "job.py")[0] == 0
        assert replay("check", "--record", "--against", "job.parquet", "--", "job.py")[0] == 0
    program.write_text(PROGRAM.format(size=26, buffer=60_000))
    code, out, _ = replay("check", "--record", "--against", "job.parquet", "--", "job.py")
    assert code == 1
    site = " at <module> (job.py:5)" if sys.version_info < (3, 14) else ""
    assert f"3,000 blocks of domain obj in phase start{site} have size class 64 B instead of 48 B" in out
    program.write_text(PROGRAM.format(size=10, buffer=200_000))
    code, out, _ = replay("check", "--record", "--against", "job.parquet", "--", "job.py")
    assert code == 1
    assert "(1 more block) in size class 256.0 KiB" in out


@pytest.mark.system
def test_a_program_that_fails_while_it_is_recorded_is_an_error(replay, tmp_path):
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    code, out, err = replay("check", "--record", "-n", "1", "-t", "blowup<=9", "--", "bad.py")
    assert (code, out) == (2, "")
    assert "ended with exit code 3 while it was recorded" in err
