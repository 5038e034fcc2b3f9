"""Values of plain texts in YAML: the core schema of YAML 1.2, not that of 1.1."""

import math

import pytest
from typer.testing import CliRunner

from replay.__main__ import app
from replay.config import load_config
from replay.support.bundled_files import find_workload
from replay.support.errors import ConfigError, WorkloadError
from replay.support.yaml_documents import parse_yaml
from replay.workload import load_workload


@pytest.mark.parametrize(
    "text",
    ["1:30:00", "190:20:30", "1_000", "yes", "No", "on", "OFF", "y", "0b101", "2024-01-01", "1e3", "=", "0o8", "1.2.3"],
)
def test_values_that_yaml_1_2_does_not_define_are_texts(text):
    assert parse_yaml(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0o17", 15), ("0x1f", 31), ("-7", -7), ("+7", 7),
        ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1.5e3", 1500.0), (".inf", math.inf), ("-.Inf", -math.inf),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_numbers_booleans_and_null_are_those_of_the_core_schema(text, value):
    found = parse_yaml(text)
    assert (type(found), found) == (type(value), value)


def test_mappings_are_merged_as_before():
    assert parse_yaml("a: {<<: {b: 1, c: 2}, c: 3}") == {"a": {"b": 1, "c": 3}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (5000 * "9", "a number has 5,000 digits, more than 400"),
        ("0x" + 5000 * "f", "a number has 5,002 digits, more than 400"),
        (10_000 * "[", "nested too deeply"),
        ("!!timestamp 2024-13-45", "month must be in 1..12"),
        ("!!python/object:os.system x", "could not determine a constructor"),
        ("\0", "unacceptable character"),
    ],
)
def test_an_invalid_value_is_reported_in_one_line(text, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [5000 * "9", "0x" + 5000 * "f", 10_000 * "[", "!!timestamp 2024-13-45", 41 * "9"])
def test_an_override_or_a_grid_of_no_value_is_refused(value):
    with pytest.raises(ConfigError, match=r"--set pymalloc\.alignment="):
        load_config("cpython-3.12", [f"pymalloc.alignment={value}"])
    result = CliRunner().invoke(app, ["sweep", "startup-static", "--grid", f"pymalloc.alignment={value}"])
    assert isinstance(result.exception, ConfigError)


def test_a_time_of_day_is_not_a_duration(tmp_path):
    text = find_workload("web-service").read_text(encoding="utf-8")
    path = tmp_path / "w.yaml"
    path.write_text(text.replace("duration: ", "duration: 1:30:00 # ", 1))
    with pytest.raises(WorkloadError, match=r"duration: '1:30:00' is not a time; write it like 20 ms"):
        load_workload(path)


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("on", True), ("true", True), ("no", False), ("off", False)]
)
def test_flags_may_still_be_written_as_words(word, value):
    assert load_config("cpython-3.12", [f"pymalloc.radix_tree={word}"]).pymalloc.radix_tree is value


@pytest.mark.parametrize(
    ("option", "example"), [("-a", "extends: cpython-3.12"), ("--plan", "vary: {glibc.arena_max: [1, 2]}")]
)
def test_a_file_of_another_kind_is_refused_with_an_example_of_the_expected_kind(tmp_path, option, example):
    (tmp_path / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    command = "run" if option == "-a" else "sweep"
    result = CliRunner().invoke(app, [command, "startup-static", option, str(tmp_path / "passwd")])
    assert str(result.exception).endswith(f"passwd:1: must be a mapping of keys to values, like `{example}`")
