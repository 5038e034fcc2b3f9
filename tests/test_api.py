"""The public names and their signatures are those of docs/api.md."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import replay

ROOT = Path(__file__).parents[1]
MANUAL = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FIRST_CELLS = re.findall(r"^\| (`.*?) \|", MANUAL.partition("\n## ")[0], re.MULTILINE)
DOCUMENTED = {name: text for cell in FIRST_CELLS for text, name in re.findall(r"`((\w+)[^`]*)`", cell)}
WITHOUT_SIGNATURE = {"Domain", "Op", "ReplayError", "__version__"}
WITHOUT_SECTION = {"Events", "MemoryTrace", "SnapshotFile", "mark"}
"""Their arguments are described in the table of names, or on other pages."""


class NotShown:
    """Stands for a default that the page does not show: it is neither None nor a bool nor an empty tuple."""

    def __repr__(self):
        return "..."


def signature_text(name):
    signature = inspect.signature(getattr(replay, name))
    parameters = [
        parameter.replace(annotation=parameter.empty, default=shown_default(parameter.default))
        for parameter in signature.parameters.values()
    ]
    return f"{name}{inspect.Signature(parameters)}"


def shown_default(default):
    shown = default is inspect.Parameter.empty or default is None or isinstance(default, bool) or default == ()
    return default if shown else NotShown()


def test_the_exported_names_are_those_of_the_manual():
    assert set(DOCUMENTED) == set(replay.__all__)
    assert set(replay.__all__) <= set(dir(replay))


@pytest.mark.parametrize("name", replay.__all__)
def test_every_exported_name_exists(name):
    value = getattr(replay, name)
    assert name == "__version__" or value.__name__ == name


@pytest.mark.parametrize("name", sorted(set(replay.__all__) - WITHOUT_SIGNATURE))
def test_a_documented_signature_is_the_real_one(name):
    assert DOCUMENTED[name] == signature_text(name)


@pytest.mark.parametrize("name", sorted(set(replay.__all__) - WITHOUT_SIGNATURE - WITHOUT_SECTION))
def test_every_optional_argument_is_described(name):
    section = re.search(rf"^\*\*`{name}`\*\*(.*?)(?=^\*\*`|\Z)", MANUAL, re.MULTILINE | re.DOTALL)
    assert section
    parameters = inspect.signature(getattr(replay, name)).parameters.values()
    optional = {parameter.name for parameter in parameters if parameter.default is not parameter.empty}
    assert optional <= set(re.findall(r"`(\w+)`", section[1]))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'replay' has no attribute 'rum'"):
        replay.rum  # noqa: B018


@pytest.mark.system
def test_importing_the_package_imports_none_of_its_modules():
    code = "import sys, replay; print([name for name in sys.modules if name.startswith('replay.')])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_the_example_of_the_manual_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
    exec(example, {})
    printed = capsys.readouterr().out
    assert '"allocator": "cpython-3.12"' in printed
    assert '"workload": "startup-static"' in printed


def test_a_trace_is_made_written_and_read_by_the_public_names(tmp_path):
    import numpy as np

    op = np.array([replay.Op.MALLOC, replay.Op.MALLOC, replay.Op.FREE], np.uint8)
    events = replay.Events(
        time_ns=np.array([0, 5, 9], np.int64),
        thread=np.zeros(3, np.uint32),
        op=op,
        domain=np.full(3, replay.Domain.OBJ, np.uint8),
        block=np.array([0, 1, 0], np.uint32),
        size=np.array([100, 20, 0], np.int64),
    )
    path = tmp_path / "t.parquet"
    assert replay.write_trace(replay.MemoryTrace([events]), path) == 3
    summary = replay.summarize(replay.run(replay.open_source(path), replay.load_config("cpython-3.9")))
    assert (summary.requested_bytes_peak, summary.requested_bytes_end, summary.block_bytes_end) == (120, 20, 32)
    with pytest.raises(replay.ReplayError, match="already exists"):
        replay.write_trace(replay.MemoryTrace([events]), path)
