"""The claims of a run depend on the origin of the trace and on the stack."""

import json
import subprocess
import sys

import pytest
from conftest import PROGRAM_SECONDS
from histories import seeded

from replay.analysis.metrics import summarize
from replay.config import load_config
from replay.recorder import tap as taps
from replay.recorder.runtime import Status, read_status
from replay.reports.claims import claims, sentences
from replay.simulation.run import run
from replay.trace import CLEAN_START, MemoryTrace, Metadata, Provenance, ResidentMemory, Runtime

MIB = 1 << 20
GLIBC = {"libc": "glibc 2.36", "malloc": "libc.so.6"}
TRACE = seeded(3, 400).trace()


def claimed(metadata, preset="cpython-3.12"):
    config = load_config(preset)
    recording = run(MemoryTrace(TRACE.events, metadata), config, sample_every_ns=1 << 60)
    return claims(metadata, config, summarize(recording))


def kinds(found_claims):
    """Returns the kinds of reasons by figures that are not exact."""
    return {each.figures: [reason.kind for reason in each.reasons] for each in found_claims if each.status != "exact"}


def recorded(resident=None, separate_heaps=False, allocator="pymalloc", interpreter="cpython 3.12.1", **origin):
    runtime = Runtime(allocator, **GLIBC, separate_heaps=separate_heaps, resident=resident)
    return Metadata(Provenance(**{"start": CLEAN_START, "interpreter": interpreter} | origin), runtime=runtime)


def test_of_a_generated_workload_all_but_the_time_is_exact():
    found_claims = claimed(Metadata(Provenance(workload="web-service", seed=4)))
    assert kinds(found_claims) == {"time": ["costs"]}
    assert [each.figures for each in found_claims] == ["requested", "pymalloc", "libc", "time"]
    assert sentences(found_claims)[0].startswith(
        "Exact: requested bytes, pymalloc's blocks, pools and arenas, glibc's blocks"
    )


def test_a_part_of_a_generated_workload_is_as_exact_as_the_whole():
    found_claims = claimed(Metadata(Provenance(workload="web-service", seed=4, edited="cut --to 1s")))
    assert kinds(found_claims) == {"time": ["costs"]}


def test_of_models_that_no_process_uses_nothing_but_the_requests_is_claimed():
    assert [each.figures for each in claimed(Metadata(), "ideal")] == ["requested", "time"]


def test_a_recording_without_native_memory_leaves_the_c_library_open():
    native = ["native memory"]
    found_claims = claimed(recorded())
    assert kinds(found_claims) == {"libc": native, "resident": native, "time": ["costs"]}
    exact = "Exact: requested bytes of Python's allocators, pymalloc's blocks, pools and arenas."
    assert sentences(found_claims)[0].startswith(exact)


@pytest.mark.parametrize(
    ("metadata", "preset", "figures"),
    [
        (recorded(older_frees=7), "cpython-3.12", {"pymalloc": ["older blocks"]}),
        (recorded(start="as it was"), "cpython-3.12", {"pymalloc": ["older blocks"]}),
        (recorded(left_out_calls=3), "cpython-3.12",
         {"requested": ["threads left out"], "pymalloc": ["threads left out"]}),
        (recorded(separate_heaps=True), "cpython-3.12", {"pymalloc": ["separate heaps"]}),
        (recorded(separate_heaps=True, allocator="malloc"), "cpython-3.12-malloc", {}),
        (recorded(), "cpython-3.8", {"requested": ["interpreter"], "pymalloc": ["interpreter"]}),
        (recorded(allocator="malloc"), "cpython-3.12", {"pymalloc": ["allocator"]}),
        (recorded(), "cpython-3.12-glibc-2.41", {}),
        (recorded(edited="cut --to 1s"), "cpython-3.12", {"pymalloc": ["edited"]}),
    ],
)  # fmt: skip
def test_each_thing_that_is_not_known_is_a_reason(metadata, preset, figures):
    found = kinds(claimed(metadata, preset))
    assert {name: reasons for name, reasons in found.items() if name in ("requested", "pymalloc")} == figures
    assert "native memory" in found["libc"]
    assert ("libc" in found["libc"]) == preset.endswith("2.41")


@pytest.mark.parametrize(
    ("origin", "requested", "placement"),
    [
        ({"assumed domain": "libc", "assumed time": "an event a microsecond"}, [], ["log"]),
        ({"dropped frees": "2", "cut short": "after 7 records"}, ["log", "log"], ["log", "log"]),
        ({"dropped mappings": "9", "dropped frees": "many"}, [], []),
    ],
)
def test_missing_and_assumed_data_of_a_log_are_reasons(origin, requested, placement):
    found = kinds(claimed(Metadata(Provenance.from_texts(origin))))
    assert (found.get("requested", []), found.get("pymalloc", [])) == (requested, placement)


def test_text_from_a_trace_cannot_steer_the_terminal():
    found_claims = claimed(
        Metadata(Provenance(assumed_domain="\x1b[31m", cut_short="\x07", interpreter="cpython 3.\x1b.1"))
    )
    assert not any(each in " ".join(sentences(found_claims)) for each in "\x1b\x07")


def test_the_report_says_for_how_much_measured_growth_the_recording_does_not_account():
    found_claims = claimed(recorded(ResidentMemory(10 * MIB, 172 * MIB, 90 * MIB)))
    (measured,) = [each.measured for each in found_claims if each.measured]
    peak_bytes = summarize(run(TRACE, load_config("cpython-3.12"))).resident_bytes_peak
    assert (measured.start_bytes, measured.growth_peak_bytes, measured.growth_end_bytes) == tuple(
        size * MIB for size in (10, 162, 80)
    )
    assert measured.unexplained_peak_bytes == 162 * MIB - peak_bytes
    (line,) = [each for each in sentences(found_claims) if each.startswith("Measured: ")]
    assert "grew by 162.0 MiB to its peak, from 10.0 MiB when the recording began; " in line
    assert "; the recorded allocations do not account for " in line
    assert "`memray run --trace-python-allocators`" in line


def test_growth_that_the_recording_accounts_for_is_not_called_native():
    peak_bytes = summarize(run(TRACE, load_config("cpython-3.12"))).resident_bytes_peak
    found_claims = claimed(recorded(ResidentMemory(MIB, 2 * MIB + peak_bytes - 1, MIB)))
    assert any(line.endswith("; the recorded allocations account for this growth.") for line in sentences(found_claims))


def test_another_stack_does_not_explain_the_measured_memory():
    found_claims = claimed(recorded(ResidentMemory(MIB, 99 * MIB, MIB)), "cpython-3.8")
    assert [each.measured.unexplained_peak_bytes for each in found_claims if each.measured] == [None]


def test_the_kernels_words_on_memory_are_read_or_nothing_is_known():
    text = "Name:\tpython\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t 50 kB\nRssShmem:\t 120 kB\n"
    status = read_status(text)
    assert status == Status(300 << 10, 200 << 10, 120 << 10)
    assert status.own == 80 << 10
    assert read_status(text[: text.index("RssShmem")]) is None


needs_recording = pytest.mark.skipif(taps.obstacle() is not None, reason=str(taps.obstacle()))


@pytest.mark.system
@needs_recording
def test_a_recording_measures_the_peak_and_the_end_before_teardown(tmp_path):
    """Memory outside Python's API: 60 MiB for a moment, 20 MiB until the end."""
    code = (
        "import mmap\n"
        "for mib in (60, 20):\n"
        "    kept = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE)\n"
        "    kept.write(b'x' * (mib << 20))\n"
    )
    path = tmp_path / "trace.parquet"
    command = [sys.executable, "-m", "replay"]
    subprocess.run(
        [*command, "record", "-o", path, "-c", code], check=True, capture_output=True, timeout=PROGRAM_SECONDS
    )
    done = subprocess.run([*command, "run", path, "--json", "--no-reference"], check=True, capture_output=True)
    (measured,) = [each["measured"] for each in json.loads(done.stdout)["claims"] if each["measured"]]
    # The bytes that are written are Python's. The kernel's counters lag by some pages a processor.
    assert 118 * MIB < measured["growth_peak_bytes"] < 126 * MIB
    assert 18 * MIB < measured["growth_end_bytes"] < 26 * MIB
    assert 56 * MIB < measured["unexplained_peak_bytes"] < 66 * MIB
