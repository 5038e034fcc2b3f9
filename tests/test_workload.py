import json
import re
from pathlib import Path

import pytest
from conftest import invoke

from replay.support.bundled_files import (
    config_names,
    find_config,
    find_workload,
    object_program_names,
    recorded_names,
    workload_names,
)
from replay.support.errors import ConfigError, WorkloadError
from replay.workload import Workload, load_workload

DOCS = Path(__file__).parent.parent / "docs" / "workloads.md"
GOOD = """\
duration: 1 s
streams:
  requests:
    arrivals: {kind: poisson, rate: 100/s}
    size:
      kind: lognormal
      median: 64
      sigma: 1
    lifetime: 1 ms
    group: cache
sets:
  sessions: {blocks: 10, size: 64}
phases:
  - {name: drop, start: 500 ms, free: [cache], rates: {requests: 2}}
"""


def refusal(tmp_path, text):
    """Returns the lines of the error, without the path."""
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)) for line in lines]


def test_a_good_file_is_read_with_its_units(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(GOOD)
    workload = load_workload(path)
    assert workload.duration == 10**9
    assert workload.streams["requests"].arrivals.rate == 100.0
    assert workload.streams["requests"].lifetime == 10**6
    assert [phase.start for phase in workload.all_phases()] == [500_000_000]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("sigma", "sigmaa", ":8: streams.requests.size.sigmaa: unknown key; did you mean 'sigma'?"),
        ("lognormal", "lognorm", ":6: streams.requests.size.kind: unknown kind 'lognorm'; did you mean 'lognormal'?"),
        ("kind: poisson, ", "", ":4: streams.requests.arrivals: key 'kind' is missing"),
        ("      sigma: 1\n", "", ":5: streams.requests.size: key 'sigma' is missing"),
        ("100/s", "fast", ":4: streams.requests.arrivals.rate: 'fast' is not a rate; write it like 200/s"),
        ("1 ms", "1 mss", ":9: streams.requests.lifetime: '1 mss' is not a time; write it like 20 ms"),
        (
            "size: 64}", "size: {kind: choice, weights: {1024: 1, 1 KiB: 2}}}",
            ":12: sets.sessions.size.weights: one value has two weights, written in different units",
        ),
        ("size: 64}", "size: 10 ms}", ":12: sets.sessions.size: '10 ms' is not a size; write it like 256 KiB"),
        ("free: [cache]", "free: [cahce]", ":14: phases.0.free.0: unknown group 'cahce'; did you mean 'cache'?"),
        (
            "rates: {requests", "rates: {request",
            ":14: phases.0.rates.request: unknown stream, set or group; did you mean 'requests'?",
        ),
        (
            "free: [cache]", "end_threads: [0]",
            ":14: phases.0.end_threads.0: thread 0 is the main one, which ends with the process",
        ),
        (
            "free: [cache]", "end_threads: [2]",
            ":14: phases.0.end_threads.0: unknown thread 2; the process has threads 0 to 0; raise `threads`",
        ),
        ("start: 500 ms", "start: 5 s", ":14: phases.0.start: is not before the workload's end"),
        ("requests: 2", "requests: {from: 0, to: 1}", ":14: phases.0: a ramp needs the phase's `duration`"),
        ("sessions:", "requests:", ":12: sets.requests: a stream already has this name; rename one of them"),
        (
            "group: cache", "threads: [1]\n    group: cache",
            ":10: streams.requests.threads.0: unknown thread 1; the process has threads 0 to 0; raise `threads`",
        ),
        (
            "size: 64}", "size: 256 TiB}",
            ":12: sets.sessions.size: '256 TiB' should be less than or equal to 140737488355328",
        ),
        (
            "group: cache", "grow: {steps: 2, spacing: 1 ms}\n    group: cache",
            ":10: streams.requests.grow: a block grows by `factor` or by `increment`; set one of them",
        ),
        ("duration: 1 s", "duration: 1 s\nduration: 2 s", ":2: duplicate key 'duration', first on line 1"),
        ("streams:", "streams: [", ":4: is not valid YAML: expected ',' or ']', but got ':'"),
        (
            "size: 64}", "size: {kind: choice, weights: {64: .inf}}}",
            ":12: sets.sessions.size.weights.64: inf should be a finite number",
        ),
        (
            "size: 64}", "size: {kind: histogram, edges: [1, 2], counts: [.inf]}}",
            ":12: sets.sessions.size.counts.0: inf should be a finite number",
        ),
        (
            "size: 64}", "size: {kind: mixture, parts: [{weight: .inf, of: 64}]}}",
            ":12: sets.sessions.size.parts.0.weight: inf should be a finite number",
        ),
        ("100/s", "100/", ":4: streams.requests.arrivals.rate: '100/' is not a rate; write it like 200/s"),
        (
            "start: 500 ms, free: [cache]", "start: 500 ms, fraction: 0.5",
            ":14: phases.0.fraction: requires the key `free`",
        ),
        (
            "    group: cache", "    start: 800 ms\n    stop: 800 ms\n    group: cache",
            ":11: streams.requests.stop: is not after its start",
        ),
        ("blocks: 10,", "blocks: 10, start: 9 ms, stop: 1 ms,", ":12: sets.sessions.stop: is not after its start"),
        ("sessions:", "all:", ":12: sets.all: this name is reserved for all streams and sets; choose another"),
        (
            "100/s", "1e999999/s",
            ":4: streams.requests.arrivals.rate: '1e999999/s' is not a rate; write it like 200/s",
        ),
        ("median: 64", "median: 0", ":7: streams.requests.size.median: must be above zero"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_line_key_and_advice(tmp_path, good, bad, message):
    assert refusal(tmp_path, GOOD.replace(good, bad, 1)) == [message]


def test_up_to_five_mistakes_are_reported_together(tmp_path):
    lines = refusal(tmp_path, "duration: 1 s\n" + "".join(f"wrong{i}: 1\n" for i in range(7)))
    assert lines[0] == (
        ":2: wrong0: unknown key; known here: "
        "description, duration, seed, threads, warm_up, process, streams, sets, phases"
    )
    assert len(lines) == 6
    assert lines[5] == ": and 2 more of the kind"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: must be a mapping of keys to values, like `duration: 10 s`"),
        (b"- a\n", ":1: must be a mapping of keys to values, like `duration: 10 s`"),
        (b"\xff\xfe\x00", ": is not text in UTF-8; save it as UTF-8"),
        (b"duration: 1 s\n", ":1: nothing is allocated; write at least one entry under `streams` or `sets`"),
        (b"streams: 3\nduration: 1 s", ":1: streams: 3 must be a mapping of keys to values"),
        (b"duration: &a [*a]\nsets: {a: {blocks: 1, size: 1}}", None),
        (b"duration: !!python/object:os.system 1\n", None),
    ],
)
def test_an_invalid_workload_is_refused_in_a_sentence(tmp_path, content, message):
    path = tmp_path / "w.yaml"
    path.write_bytes(content)
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    assert "\n" not in str(caught.value)
    if message is not None:
        assert str(caught.value) == f"{path}{message}"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match=r"none\.yaml: cannot be read: No such file"):
        load_workload(tmp_path / "none.yaml")


def test_warm_up_stands_for_two_phases(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(GOOD.replace("duration: 1 s", "duration: 1 s\nwarm_up: 100 ms"))
    assert [(phase.name, phase.start) for phase in load_workload(path).all_phases()] == [
        ("warm-up", 0),
        ("steady", 100_000_000),
        ("drop", 500_000_000),
    ]


@pytest.mark.parametrize("name", workload_names())
def test_a_bundled_workload_has_a_description_of_one_sentence(name):
    description = load_workload(find_workload(name)).description
    assert len(description) > 60
    assert description.endswith(".")
    assert ". " not in description


def test_there_are_at_least_eight_bundled_workloads():
    assert len(workload_names()) >= 8


def test_an_unknown_bundled_name_suggests_the_nearest():
    with pytest.raises(WorkloadError, match="no bundled workload has this name; did you mean 'web-service'"):
        find_workload("web-servic")
    with pytest.raises(
        ConfigError, match=r"has this name; known here: bump, cpython-2\.7, .*`replay allocators` lists them"
    ):
        find_config("zzz")


def test_bundled_configurations_are_found():
    assert find_config(config_names()[0]).is_file()


def test_every_key_and_kind_is_in_the_documentation():
    text = re.sub(r"```.*?```", "", DOCS.read_text(), flags=re.DOTALL)
    schema = Workload.model_json_schema()
    known = set(re.findall(r"[a-z_-]+", " ".join(re.findall(r"`([^`]+)`", text))))
    for form in [schema, *schema["$defs"].values()]:
        for key, value in form.get("properties", {}).items():
            assert key in known, (form["title"], key)
            if key == "kind":
                assert value["const"] in known


def test_schema_prints_the_workloads_json_schema():
    result = invoke("schema", "workload")
    content = json.loads(result.stdout)
    assert list(content["properties"]) == list(Workload.model_fields)
    assert content["additionalProperties"] is False


def test_the_schema_of_a_stack_has_the_keys_of_its_models():
    content = json.loads(invoke("schema", "config").stdout)
    models = {name: form["properties"] for name, form in content["$defs"].items() if "properties" in form}
    assert any("alignment" in keys and "arena_size" in keys for keys in models.values())
    sections = {section: json.dumps(content["properties"][section]) for section in ("linux", "glibc", "pymalloc")}

    def reachable(section):
        names = [text.rpartition("/")[2] for text in re.findall(r'"#/\$defs/[^"]*', sections[section])]
        return {key for name in names for key in models[name]}

    assert "page_size" in reachable("linux")
    assert "alignment" in reachable("pymalloc")
    assert "mmap_threshold" in reachable("glibc")


def test_workloads_lists_the_bundled_ones():
    listed = json.loads(invoke("workloads", "--json").stdout)
    assert [entry["name"] for entry in listed] == [*workload_names(), *object_program_names(), *recorded_names()]
    assert [entry["name"] for entry in listed if entry["recorded"]] == recorded_names()
    assert "web-service" in invoke("workloads").stdout
