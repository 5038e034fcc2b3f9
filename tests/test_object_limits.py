"""Limits of object programs that do not end, and the release that a program names."""

import re

import pytest

from replay.commands.rerecording import requests_note
from replay.config import default_preset
from replay.objects import load_objects
from replay.objects.running import run_program
from replay.objects.tracing import ObjectTrace
from replay.sources import open_source
from replay.support.errors import WorkloadError
from replay.trace import Provenance

GROWS_ITS_LIST = """\
kind: objects
limits: {memory: 1 MiB}
main:
  - bind: {xs: {list: [1]}}
  - each: xs
    as: x
    do:
      - append: x
        to: xs
"""
KEEPS_TUPLES = """\
kind: objects
limits: {memory: 1 MiB}
main:
  - bind: {xs: {list: []}}
  - repeat: 1000000000000
    as: i
    do:
      - append: {tuple: [i]}
        to: xs
"""
REPEATS = """\
kind: objects
limits: {steps: 1000}
main:
  - repeat: 1000000000000
    as: i
    do:
      - bind: {x: 1}
"""
STARTS_ITSELF = """\
kind: objects
limits: {threads: 20}
functions:
  f:
    do:
      - start: f
main:
  - start: f
"""
CALLS_ITSELF = """\
kind: objects
functions:
  f:
    do:
      - call: f
main:
  - call: f
"""
TOO_LARGE = (
    "entries for their references need more than 1.00 MiB here, the limit of the simulation's memory; "
    "if the program ends, allow more with"
)


@pytest.fixture
def written(tmp_path):
    """Writes a program to a file and returns its path."""

    def write(text):
        path = tmp_path / "program.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("python", ["3.8", "3.14"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GROWS_ITS_LIST, f"8: main.1.do.0: N objects and N {TOO_LARGE} `limits: {{memory: …}}`"),
        (REPEATS, "7: main.0.do.0: the program takes more than 1,000 steps; if it ends, allow more with "
         "`limits: {steps: …}`"),
        (STARTS_ITSELF, "6: functions.f.do.0: more than 20 threads are started; if the program ends, allow more with "
         "`limits: {threads: …}`"),
        (CALLS_ITSELF, "5: functions.f.do.0: calls are nested more than 900 deep"),
    ],
)  # fmt: skip
def test_a_program_without_an_end_is_stopped_with_the_place_and_the_limit(written, text, message, python):
    program = load_objects(written(f'{text}python: "{python}"\n'))
    with pytest.raises(WorkloadError) as caught:
        for _ in run_program(program, tuple(map(int, python.split(".")))):
            pass
    found = str(caught.value).partition(":")[2]
    assert re.sub(r"[\d,]+ objects and [\d,]+", "N objects and N", found) == message


def test_objects_that_a_loop_keeps_are_limited_too(written):
    with pytest.raises(WorkloadError, match=r"main\.1.*: [\d,]+ objects and .* need more than 1\.00 MiB here"):
        list(run_program(load_objects(written(KEEPS_TUPLES)), (3, 12)))


def test_a_higher_limit_lets_a_program_end(written):
    text = REPEATS.replace("1000000000000", "300")
    for limit, ends in ((1000, False), (4000, True)):
        program = load_objects(written(text.replace("steps: 1000", f"steps: {limit}")))
        if ends:
            assert sum(len(batch.events) for batch in run_program(program, (3, 12)))
        else:
            with pytest.raises(WorkloadError, match="more than 1,000 steps"):
                list(run_program(program, (3, 12)))


def test_a_command_stops_an_endless_program_with_exit_code_2(written, refused, tmp_path):
    error = refused("generate", written(STARTS_ITSELF), "-o", tmp_path / "trace.parquet")
    assert "program.yaml:6: functions.f.do.0: more than 20 threads are started" in error
    assert not (tmp_path / "trace.parquet").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python: 3.12", '3.12 is a number in YAML; write the release in quotes: python: "3.12"'),
        ("python: 3.10", '3.1 is a number in YAML; write the release in quotes: python: "3.10"'),
        ("python: '3.7'", "'3.7' should be '3.8', '3.9', '3.10', '3.11', '3.12', '3.13', '3.14' or '3.15'"),
        ("seed: x", "'x' should be a whole number"),
        ("description: 3", "3 should be a text"),
        ("functions: {f: {parameters: a, do: [{drop: [a]}]}}", "'a' should be a list"),
        ("functions: {f: {parameters: [a b], do: [{drop: [a]}]}}",
         "'a b' is not a name; names have letters, digits and "
         "underscores, and begin with a letter"),
        ("functions: {f: {parameters: [a.b], do: [{drop: [a]}]}}",
         "'a.b' is an attribute; only a name is possible here"),
        ("collector: {enabled: maybe}", "'maybe' should be true or false"),
        ("collector: {thresholds: [1, 2]}", "[1, 2] should have at least 3 items, not 2"),
        ("functions: {f: {do: [{bind: {x: true}}]}}", "True is not an expression; write a whole number, a name or a "
         "mapping"),
        ("functions: {f: {do: [{choose: half, do: [{drop: [x]}]}]}}", "'half' should be a number"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_in_plain_words(written, line, message):
    with pytest.raises(WorkloadError) as caught:
        load_objects(written(f"kind: objects\n{line}\nmain: [{{bind: {{x: 1}}}}]\n"))
    where, what = str(caught.value).split(": ", 1)
    assert where.endswith(":2")
    assert what.endswith(f": {message}")


@pytest.mark.parametrize("inner", ["{define: g, do: [{return: 1}]}", "{bind: {g: 1}}"])
def test_only_functions_of_the_program_can_be_started(written, inner):
    functions = f"functions: {{f: {{do: [{inner}, {{start: g}}]}}, h: {{do: [{{return: 1}}]}}}}"
    with pytest.raises(
        WorkloadError, match="'g' is a variable or inner function; a thread calls a function of `functions`"
    ):
        load_objects(written(f"kind: objects\n{functions}\nmain: [{{call: f}}]\n"))


def test_the_default_stack_follows_the_release_of_the_program(written):
    trace = ObjectTrace(load_objects(written('kind: objects\npython: "3.9"\nmain: [{bind: {x: 1}}]\n')), 1)
    assert default_preset(trace.metadata) == "cpython-3.9"
    assert requests_note("program.yaml", trace.metadata.origin, ["cpython-3.9", "ideal"]) is None


def test_another_release_than_that_of_the_program_is_noted():
    assert requests_note("program.yaml", Provenance(python="3.9"), ["cpython-3.13"]) == (
        'program.yaml names `python: "3.9"`; its requests are those of that release,\n'
        '      and CPython 3.13 would request other sizes. Write `python: "3.13"`, or use -a cpython-3.9'
    )


def test_a_generated_trace_keeps_the_release_of_its_program(written, replay, tmp_path):
    path = tmp_path / "trace.parquet"
    assert replay("generate", written('kind: objects\npython: "3.9"\nmain: [{bind: {x: 1}}]\n'), "-o", path)[0] == 0
    assert open_source(str(path)).metadata.origin.python == "3.9"
