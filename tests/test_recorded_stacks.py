"""The stack of a recording: the recorded one, or a substitute, which is reported."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import PROGRAM_SECONDS, recorded
from histories import seeded

from replay.config import default_environment, default_preset, differences, load_config
from replay.recorder import tap as taps
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.errors import TraceError
from replay.trace import Metadata, Provenance, ResidentMemory, Runtime
from replay.trace.editing import edited


def recording_of(interpreter="cpython 3.12.1", **runtime):
    return Metadata(Provenance(interpreter=interpreter), runtime=Runtime(**runtime) if runtime else None)


GLIBC = {"libc": "glibc 2.36", "malloc": "libc.so.6"}


@pytest.mark.parametrize(
    ("metadata", "preset", "message"),
    [
        (recording_of(), "cpython-3.12", []),
        (recording_of(allocator="pymalloc", **GLIBC), "cpython-3.12", []),
        (recording_of("cpython 3.13.0", allocator="malloc", **GLIBC), "cpython-3.13-malloc", []),
        (recording_of("cpython 3.11.7", allocator="pymalloc", libc="glibc 2.41", malloc="libc.so.6"),
         "cpython-3.11-glibc-2.41", []),
        (recording_of(allocator="malloc", libc="glibc 2.31", malloc="libc-2.31.so"), "cpython-3.12-malloc-glibc-2.31",
         []),
        (recording_of(allocator="pymalloc", libc="glibc 2.39", malloc="libc.so.6"), "cpython-3.12",
         ["recorded with glibc 2.39, simulated with glibc 2.36"]),
        (recording_of(allocator="pymalloc", libc="glibc 2.28", malloc="libc-2.28.so"), "cpython-3.12-glibc-2.31",
         ["recorded with glibc 2.28, simulated with glibc 2.31"]),
        (recording_of(allocator="pymalloc_debug", **GLIBC), "cpython-3.12",
         ["recorded with pymalloc_debug, simulated with pymalloc"]),
        (recording_of(allocator="malloc_debug", **GLIBC), "cpython-3.12-malloc",
         ["recorded with malloc_debug, simulated with malloc"]),
        (recording_of("cpython 3.13.5", allocator="mimalloc", **GLIBC), "cpython-3.13",
         ["recorded with mimalloc, simulated with pymalloc"]),
        (recording_of(allocator="pymalloc", libc="glibc 2.41", malloc="libjemalloc.so.2"), "cpython-3.12",
         ["recorded with libjemalloc.so.2, simulated with glibc 2.36"]),
        (recording_of(allocator="pymalloc", malloc="ld-musl-x86_64.so.1"), "cpython-3.12",
         ["recorded with ld-musl-x86_64.so.1, simulated with glibc 2.36"]),
        (recording_of("cpython 3.99.0", allocator="pymalloc", **GLIBC), "cpython-3.15",
         ["recorded with CPython 3.99, simulated with CPython 3.15"]),
    ],
)  # fmt: skip
def test_a_recording_has_the_matching_preset_and_differences_are_reported(metadata, preset, message):
    assert default_preset(metadata) == preset
    assert [str(each) for each in differences(metadata, load_config(preset))] == message


def test_differences_from_a_named_stack_are_reported():
    metadata = recording_of(allocator="pymalloc", **GLIBC)
    other = load_config("cpython-3.8-malloc-glibc-2.31")
    assert [each.part for each in differences(metadata, other)] == ["interpreter", "allocator", "libc"]


def test_of_a_stack_without_a_version_of_cpython_no_interpreter_is_compared():
    parts = [each.part for each in differences(recording_of(allocator="pymalloc", **GLIBC), load_config("ideal"))]
    assert parts == ["allocator", "libc"]


def test_the_recorded_settings_of_malloc_are_those_of_the_default_stack():
    settings = ("MALLOC_ARENA_MAX=1", "MALLOC_TOP_PAD_=64k")  # glibc 2.36 takes the 64 and ignores the rest
    metadata = recording_of(allocator="pymalloc", malloc_settings=settings, **GLIBC)
    assert default_environment(metadata) == ("MALLOC_ARENA_MAX=1",)
    stack = load_config(default_preset(metadata), (), default_environment(metadata))
    assert stack.libc.arena_max == 1
    refused = (
        "recorded with MALLOC_TOP_PAD_=64k, simulated with the setting's default, because its value is not supported"
    )
    assert [str(each) for each in differences(metadata, stack)] == [refused]
    others = [str(each) for each in differences(metadata, load_config("cpython-3.12"))]
    assert others[0].startswith("recorded with MALLOC_ARENA_MAX=1, simulated with glibc.arena_max=")


def test_recordings_with_different_settings_of_malloc_have_the_default_ones():
    metadata = [recording_of(malloc_settings=(f"MALLOC_ARENA_MAX={number}",), **GLIBC) for number in (1, 2)]
    assert default_environment(*metadata) == ()
    assert default_environment(metadata[0], metadata[0]) == ("MALLOC_ARENA_MAX=1",)


def test_settings_are_taken_from_the_environment_of_a_recording(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=4096:glibc.malloc.tcache_count=0")
    runtime = recorded(tmp_path, "-c", "kept = [bytes(1000)]").metadata.runtime
    assert runtime.malloc_settings == ("MALLOC_ARENA_MAX=1", "GLIBC_TUNABLES=glibc.malloc.tcache_count=0")


def test_traces_that_were_not_recorded_have_the_preset_of_the_running_python():
    own = default_preset()
    assert default_preset(Metadata(Provenance(workload="x")), Metadata()) == own
    assert default_preset(Metadata(Provenance(interpreter="pypy 3.10"))) == own
    assert differences(Metadata(), load_config("cpython-3.8")) == []


def test_recordings_that_disagree_have_the_preset_of_the_running_python():
    assert default_preset(recording_of("cpython 3.12.1"), recording_of("cpython 3.13.0")) == default_preset()
    assert default_preset(*[recording_of("cpython 3.13.0")] * 2) == "cpython-3.13"


def test_the_runtime_is_read_back_from_a_file(tmp_path):
    runtime = Runtime(
        "malloc",
        "glibc 2.36",
        "libc.so.6",
        separate_heaps=True,
        resident=ResidentMemory(1, 9, 3),
        malloc_settings=("MALLOC_ARENA_MAX=1",),
    )
    trace = seeded(1, 100).trace()
    write_trace(replace(trace, metadata=Metadata(runtime=runtime)), tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").metadata.runtime == runtime
    wrong = replace(runtime, resident=ResidentMemory(1, -9, 3))
    write_trace(replace(trace, metadata=Metadata(runtime=wrong)), tmp_path / "wrong.parquet")
    with pytest.raises(TraceError, match=r"wrong at `runtime\.resident`: negative bytes"):
        open_source(tmp_path / "wrong.parquet")


def test_an_edited_recording_keeps_its_allocator_but_not_the_memory_of_the_process():
    runtime = Runtime(
        "malloc", "glibc 2.36", "libc.so.6", resident=ResidentMemory(1, 9, 3), malloc_settings=("MALLOC_ARENA_MAX=1",)
    )
    assert edited(Metadata(runtime=runtime), "cut").runtime == replace(runtime, resident=None)


@pytest.fixture
def succeeded(replay, outside_ci):
    """Calls `replay` in an empty folder, which must succeed: standard output and standard error."""

    def call(*arguments):
        code, out, err = replay(*arguments)
        assert code == 0, err
        return out, err

    return call


@pytest.fixture
def debug_recording(tmp_path):
    """Made by CPython 3.8 under PYTHONMALLOC=malloc_debug, as far as its metadata say."""
    metadata = recording_of("cpython 3.8.18", allocator="malloc_debug", **GLIBC)
    write_trace(replace(seeded(3, 500).trace(), metadata=metadata), tmp_path / "recorded.parquet")
    return "recorded.parquet"


NOTE = "note: recorded with malloc_debug, simulated with malloc\n"


def test_run_uses_the_stack_of_the_recording_and_reports_substitutes(succeeded, debug_recording):
    out, printed = succeeded("run", debug_recording, "--json", "--no-reference")
    assert json.loads(out)["allocator"] == "cpython-3.8-malloc"
    assert NOTE in printed
    out, printed = succeeded("run", debug_recording, "--json", "--no-reference", "-a", "cpython-3.12")
    assert json.loads(out)["allocator"] == "cpython-3.12"
    assert NOTE not in printed


def test_baseline_and_check_take_the_stack_of_the_recording(succeeded, debug_recording):
    _, printed = succeeded("baseline", debug_recording)
    assert NOTE in printed
    out, printed = succeeded("check", debug_recording, "--json")
    assert NOTE in printed
    assert [case["allocator"] for case in json.loads(out)["cases"]] == ["cpython-3.8-malloc"]


def test_a_sweep_compares_with_the_stack_of_the_recording(succeeded, debug_recording):
    out, printed = succeeded("sweep", debug_recording, "--env", "MALLOC_ARENA_MAX=default,1", "--json", "--jobs", 1)
    assert {row["allocator"] for row in json.loads(out)["runs"]} == {"cpython-3.8-malloc"}
    assert NOTE in printed


needs_recording = pytest.mark.skipif(taps.obstacle() is not None, reason=str(taps.obstacle()))


def runtime_of(folder, *options, **environment):
    """Returns the runtime of a recording of an arbitrary program."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONMALLOC"} | environment
    return recorded(folder, *options, "-c", "pass", env=environment).metadata.runtime


@pytest.mark.system
@needs_recording
@pytest.mark.parametrize(
    ("environment", "allocator"),
    [
        ({}, "pymalloc"),
        ({"PYTHONMALLOC": "malloc"}, "malloc"),
        ({"PYTHONMALLOC": "debug"}, "pymalloc_debug"),
        ({"PYTHONMALLOC": "malloc_debug"}, "malloc_debug"),
        ({"PYTHONDEVMODE": "1"}, "pymalloc_debug"),
    ],
)
def test_a_recording_has_the_allocator_of_cpython(tmp_path, environment, allocator):
    runtime = runtime_of(tmp_path, **environment)
    assert runtime.allocator == allocator
    assert runtime.libc == (os.confstr("CS_GNU_LIBC_VERSION") or "")
    assert runtime.malloc.startswith("libc")
    assert not runtime.separate_heaps


@pytest.mark.system
@needs_recording
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_recording_has_the_library_that_replaces_malloc(tmp_path):
    source, library = tmp_path / "mine.c", tmp_path / "libjemalloc.so.2"
    source.write_text(
        "#include <stddef.h>\n"
        "extern void *__libc_malloc(size_t);\n"
        "void *malloc(size_t size) { return __libc_malloc(size); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    runtime = runtime_of(tmp_path, LD_PRELOAD=str(library))
    assert runtime.malloc == "libjemalloc.so.2"


@pytest.mark.system
@needs_recording
def test_a_recording_of_this_process_has_it_too(tmp_path):
    script = "import sys, replay\nwith replay.record(sys.argv[1]): pass"
    environment = os.environ | {"PYTHONMALLOC": "malloc"}
    path = tmp_path / "own.parquet"
    subprocess.run([sys.executable, "-c", script, path], check=True, env=environment, timeout=PROGRAM_SECONDS)
    runtime = open_source(path).metadata.runtime
    assert (runtime.allocator, runtime.malloc) == ("malloc", "libc.so.6")
    assert runtime.resident.end_bytes <= runtime.resident.peak_bytes
    assert runtime.resident.start_bytes > 1 << 20
