"""Options of several commands: repeated options, lists, and settings of glibc without an effect."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from replay.__main__ import COMMANDS, app, load_command
from replay.commands.lists import split_list
from replay.commands.verify_libc import _table
from replay.config import load_config
from replay.verification.libc_compare import LibcAgreement
from replay.verification.libc_oracles import LibcOracle

TWO = ["sweep", "startup-static", "-a", "cpython-3.12", "--grid", "glibc.top_pad=0,4096"]
COUNT_ARENAS = """
import ctypes, threading
libc = ctypes.CDLL(None)
libc.open_memstream.restype = ctypes.c_void_p
barrier = threading.Barrier(41)
def hold():
    libc.malloc(ctypes.c_size_t(100)); barrier.wait(); barrier.wait()
for _ in range(40):
    threading.Thread(target=hold).start()
barrier.wait()
text, size = ctypes.c_void_p(), ctypes.c_size_t()
file = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, file); libc.fclose(file)
print(ctypes.string_at(text).count(b"<heap nr"))
barrier.wait()
"""


def leaves(command):
    commands = getattr(command, "commands", None)
    return [leaf for each in commands.values() for leaf in leaves(each)] if commands else [command]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_option_of_one_value_that_is_given_twice(name):
    for command in leaves(load_command(name)):
        for option in command.params:
            if option.param_type_name != "option" or option.multiple or option.is_flag or option.is_eager:
                continue
            with pytest.raises(typer.BadParameter, match="was given twice; give it once") as refusal:
                command.make_context(name, [option.opts[0], "1", option.opts[-1], "2"])
            assert refusal.value.param_hint in option.opts


def test_flags_and_options_of_several_values_may_be_given_twice():
    words = ["run", "none.parquet", "--json", "--json", "--set", "glibc.top_pad=0", "--set", "glibc.top_pad=1"]
    assert "the file does not exist" in str(CliRunner().invoke(app, words).exception)


def test_what_follows_the_program_of_record_belongs_to_the_program():
    words = ["record", "-o", "none/x.parquet", "none.py", "-o", "1", "-o", "2"]
    assert "the script does not exist" in str(CliRunner().invoke(app, words).exception)


def test_metrics_are_listed_with_commas_or_one_by_one():
    listed = CliRunner().invoke(app, [*TWO, "--by", "syscalls,page_faults", "--json"])
    repeated = CliRunner().invoke(app, [*TWO, "--by", "syscalls", "--by", "page_faults", "--json"])
    assert listed.exit_code == repeated.exit_code == 0
    assert '"page_faults": [' in listed.stdout
    assert listed.stdout.partition('"ranking"')[2] == repeated.stdout.partition('"ranking"')[2]


def test_a_list_of_nothing_is_refused():
    result = CliRunner().invoke(app, [*TWO, "--by", ","])
    assert (result.exit_code, "names nothing" in result.stderr) == (2, True)
    assert (split_list(None), split_list([]), split_list(["a,b", "c"])) == (None, [], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["run", "web-service", "--sample", "10"], "--sample"),
        (["run", "web-service", "--trim-every", "10"], "--trim-every"),
        ([*TWO, "--trim-every", "10"], "--trim-every"),
        (["trace", "cut", "web-service", "-o", "none/x.parquet", "--from", "10"], "--from"),
        (["trace", "cut", "web-service", "-o", "none/x.parquet", "--to", "10"], "--to"),
        (["trace", "merge", "web-service", "web-service", "-o", "none/x.parquet", "--offset", "10"], "--offset"),
        (["trace", "scale", "web-service", "-o", "none/x.parquet", "--copies", "2", "--shift", "10"], "--shift"),
    ],
)
def test_a_time_without_a_unit_is_refused(words, option):
    result = CliRunner().invoke(app, words)
    assert str(result.exception) == f"{option}: 10: missing unit; write 10ns, 10us, 10ms or 10s"


def test_minus_one_arenas_are_noted_as_no_limit():
    for key in ("arena_max", "arena_test"):
        stack = load_config("cpython-3.12", (), [f"MALLOC_{key.upper()}=-1"])
        assert stack.notes == [f"{key}: this value means no limit; each thread gets its own arena"]
    assert load_config("cpython-3.12", (), ["MALLOC_ARENA_MAX=64"]).notes == []


@pytest.mark.system
@pytest.mark.parametrize("assignment", ["MALLOC_ARENA_MAX=-1", "MALLOC_ARENA_TEST=-1"])
def test_the_real_glibc_takes_minus_one_arenas_as_no_limit(assignment):
    name, _, value = assignment.partition("=")
    done = subprocess.run([sys.executable, "-c", COUNT_ARENAS], env={name: value}, capture_output=True, check=True)
    assert int(done.stdout) == 41


def test_empty_tunables_are_noted_and_set_nothing():
    stack = load_config("cpython-3.12", (), ["GLIBC_TUNABLES="])
    assert stack.notes == ["--env GLIBC_TUNABLES=: is empty, so glibc sets no tunable"]
    assert stack.model_dump() == load_config("cpython-3.12").model_dump()


def test_a_report_without_a_name_after_the_equals_sign_is_refused():
    result = CliRunner().invoke(app, ["check", "startup-static", "--report", "junit="])
    assert str(result.exception) == "--report junit=: the file's name is empty; leave out = to print the report"


def test_the_table_of_verify_libc_fits_into_80_columns(capsys):
    many = 9_999_999
    agreement = LibcAgreement("glibc-2.36", many, many, 0, many, 0, 0.9999, 9999.99, "differs")
    table = _table([LibcOracle("glibc-2.36", "2.36", (), Path())], [("a", agreement)], resident=True)
    Console(width=80).print(table)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count(" 9,999,999 ") == 3
    assert "19,999,998" in shown
    assert "99.99%" in shown
