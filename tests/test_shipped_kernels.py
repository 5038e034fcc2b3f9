"""Machine code that wheels carry: called as numba's would be, with the same results, and only where it fits."""

import importlib.util
import json
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from replay.jit import shipped
from replay.jit.arrays import record
from replay.jit.compiling import Entry, by_reference, entry
from replay.recorder import hook_code
from replay.recorder.hook_kinds import Extras
from replay.simulation.clock import find_rows

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="the libraries are linked by a C compiler")

SCRIPT = Path(__file__).parents[1] / "kernels" / "build.py"
POINT = record("x", "y")


@by_reference
class Table(NamedTuple):
    points: np.ndarray
    total: np.ndarray
    step: int


class Pair(NamedTuple):
    left: np.ndarray
    right: tuple[np.ndarray, int]


@entry
def use_everything(table, pair, matrix, flag, weight, nothing, small):
    """Reads each kind of argument, writes to arrays, and returns each kind of number."""
    for index in range(table.points.shape[0]):
        table.points[index].x += table.step
        table.total[0] += table.points[index].x
    pair.left[1] = pair.right[0][0] + pair.right[1] + matrix[1, 2] + small
    return table.total[0], weight * 2 if flag else weight, not flag, np.uint64(1) << np.uint64(63), nothing is None


@entry
def give_back(values):
    values[0] = 7
    return values


@entry
def say_nothing(number):
    pass


@entry
def negate(number):
    return -number


@entry
def refuse(number):
    if number > 3:
        raise ValueError("too large")
    return number


def arguments_of_everything() -> tuple[Any, ...]:
    points = np.zeros(3, POINT)
    points["x"] = [1, 2, 3]
    matrix = np.arange(6, dtype=np.uint8).reshape(2, 3)
    pair = Pair(np.zeros(2, np.int64), (np.array([40], np.uint32), 2))
    return Table(points, np.zeros(1, np.int64), -5), pair, matrix, True, 0.75, None, np.int32(-9)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    specification = importlib.util.spec_from_file_location("kernels_build", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


CALLS: list[tuple[Entry, tuple[Any, ...]]] = [
    (use_everything, arguments_of_everything()),
    (give_back, (np.zeros(2, np.int64),)),
    (say_nothing, (1,)),
    (negate, (1,)),
    (refuse, (1,)),
]


@pytest.fixture(scope="module")
def folder(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries and index of the entries above and of `find_rows`."""
    into = tmp_path_factory.mktemp("shipped")
    times_ns = np.arange(5)
    with build.noted_calls() as noted:
        for function, arguments in [*CALLS, (find_rows, (times_ns, times_ns[:1], 0, 5, np.empty(1, np.int64)))]:
            function(*arguments)
    calls = list(noted.values())
    for call in calls:
        build.compile_call(call)
    build.link(calls, into)
    index = build.index_of(call for call in calls if call.name.startswith("replay."))
    for call in calls:
        index["entries"].setdefault(call.name, {"files": [], "signatures": [call.signature]})
    (into / shipped.INDEX).write_text(json.dumps(index))
    return into


def forget() -> None:
    for each in (shipped._index, shipped._library, shipped._is_unchanged, hook_code._shipped_hooks):
        each.cache_clear()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes entries use a folder of libraries, on a processor of this class."""

    def choose(folder: Path, processor: str = "x86-64") -> None:
        monkeypatch.setattr(shipped, "FOLDER", folder)
        monkeypatch.setenv(shipped.VARIABLE, processor)
        forget()

    yield choose
    forget()


def shipped_form(function: Entry) -> Any:
    """Returns the shipped code of an entry; a call that it is not made for fails."""
    return shipped.find_shipped(function.py_func, lambda: pytest.fail("numba is called"))


def plain(value: Any) -> Any:
    """Returns arrays and records as lists, to compare them."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("processor", shipped.PROCESSORS)
def test_arguments_and_results_of_each_type_are_those_of_plain_python(folder, use, processor):
    if shipped.processor_class() == "x86-64" != processor:
        pytest.skip("this processor lacks instructions of the class")
    use(folder, processor)
    mine, theirs = arguments_of_everything(), arguments_of_everything()
    for _ in range(3):
        result = shipped_form(use_everything)(*mine)
        assert plain(result) == plain(use_everything.py_func(*theirs))
        assert list(map(type, result)) == [int, float, bool, int, bool]
        assert plain(mine) == plain(theirs)
    assert plain(mine[0].total) == [-72]


def test_an_array_that_is_returned_is_the_one_that_was_passed(folder, use):
    use(folder)
    values = np.zeros(2, np.int64)
    assert shipped_form(give_back)(values) is values
    assert values.tolist() == [7, 0]


def test_a_kernel_without_a_result_returns_none(folder, use):
    use(folder)
    assert shipped_form(say_nothing)(-1) is None


@pytest.mark.parametrize("number", [0, -1, 1, (1 << 63) - 1, -(1 << 63) + 1])
def test_numbers_of_64_bits_are_passed_and_returned(folder, use, number):
    use(folder)
    kernel = shipped_form(negate)
    assert kernel(number) == kernel(np.int64(number)) == -number


def test_other_types_are_left_to_numba_and_do_not_disturb_the_shipped_ones(folder, use):
    use(folder)
    kernel = shipped.find_shipped(negate.py_func, lambda: lambda number: ("numba", number))
    assert kernel(1) == -1
    for other in (1.5, 1 << 63, True, np.uint8(1), "text", np.zeros(2)):
        assert kernel(other)[0] == "numba"
        assert kernel(2) == -2


def test_an_array_that_the_code_could_write_to_is_not_a_read_only_one(folder, use):
    use(folder)
    kernel = shipped.find_shipped(give_back.py_func, lambda: lambda values: "numba")
    values = np.zeros(2, np.int64)
    values.flags.writeable = False
    assert kernel(values) == "numba"
    assert kernel(np.zeros(4, np.int64)[::2]) == "numba"
    assert values.tolist() == [0, 0]


def test_an_equal_dtype_in_another_object_is_the_same_type(folder, use):
    use(folder)
    kernel = shipped_form(use_everything)
    for dtype in (POINT, record("x", "y"), record("x", "y")):
        table, *others = arguments_of_everything()
        points = np.zeros(3, dtype)
        kernel(table._replace(points=points), *others)
        assert points["x"].tolist() == [-5, -5, -5]


def test_an_exception_of_a_kernel_is_an_error_that_names_it(folder, use):
    use(folder)
    kernel = shipped_form(refuse)
    assert kernel(3) == 3
    with pytest.raises(RuntimeError, match=r"kernel test_shipped_kernels\.refuse raised an exception"):
        kernel(4)


def test_code_of_sources_that_were_edited_is_not_used(folder, use, tmp_path):
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    index = json.loads((copy / shipped.INDEX).read_text())
    index["files"]["simulation/clock.py"] = "0" * 64
    (copy / shipped.INDEX).write_text(json.dumps(index))
    use(folder)
    assert shipped_form(find_rows)
    use(copy)
    assert shipped_form(find_rows) is None
    assert shipped_form(negate)


@pytest.mark.parametrize("name", ["x86-64.so", shipped.INDEX])
def test_without_a_library_or_an_index_that_can_be_read_everything_is_compiled(folder, use, tmp_path, name):
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    use(copy)
    assert shipped_form(negate) is None
    (copy / name).unlink()
    forget()
    assert shipped_form(negate) is None


def test_the_variable_turns_shipped_code_off(folder, use):
    use(folder, "none")
    assert shipped_form(negate) is None


def test_hooks_in_the_package_are_the_ones_that_would_be_generated(build, use, tmp_path):
    extras = Extras((3, 12), sites=True, types=True)
    use(tmp_path)
    generated = hook_code.find_hooks(True, extras)
    stored = {"text": b64encode(generated.text).decode(), "offsets": generated.offsets}
    (tmp_path / hook_code.HOOKS_FILE).write_text(json.dumps({hook_code.key_of(True, extras): stored}))
    (tmp_path / shipped.INDEX).write_text(json.dumps(build.index_of(())))
    forget()
    assert hook_code._shipped_hooks()
    assert hook_code.find_hooks(True, extras) == generated
    assert hook_code.find_hooks(False, None) != generated
