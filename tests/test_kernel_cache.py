"""The cache of machine code: which source files each entry's code depends on."""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.jit import kernel_cache
from replay.jit.compiling import entry

PACKAGE = Path(kernel_cache.__file__).parents[1]


def sources_of(module: str) -> set[str]:
    files = kernel_cache._with_imported([PACKAGE / module])
    return {str(path.relative_to(PACKAGE)) for path in files}


def test_code_of_the_simulation_depends_on_all_models_and_on_no_format_or_command() -> None:
    sources = sources_of("simulation/loop.py")
    assert {"allocators/glibc/freeing.py", "allocators/pymalloc/__init__.py", "jit/_numba/pipeline.py"} <= sources
    assert not [path for path in sources if path.startswith(("sources/", "commands/", "workload/", "recorder/"))]


def test_files_imported_by_imported_files_are_in_the_digest_too() -> None:
    sources = sources_of("sources/heaptrack.py")
    assert {"sources/heaptrack.py", "sources/_logs/calls.py", "sources/_logs/block_lifetimes.py"} <= sources
    assert "sources/mtrace.py" not in sources


def test_a_user_without_a_home_folder_has_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "REPLAY_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    assert kernel_cache.cache_root() == Path("/nonexistent/.cache/alloc-replay")


def test_the_folder_changes_with_the_source_of_an_imported_file(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("from replay.support.limits import MAX_SIZE\n")
    before = kernel_cache.cache_folder((str(model),))
    model.write_text("from replay.support.limits import MAX_SIZE as LIMIT\n")
    kernel_cache.cache_folder.cache_clear()
    kernel_cache._imported.cache_clear()
    assert kernel_cache.cache_folder((str(model),)) != before


def test_the_folder_changes_with_any_file_of_the_package_of_a_third_party_model(tmp_path: Path) -> None:
    package = tmp_path / "their_models"
    (package / "parts").mkdir(parents=True)
    for name in ("__init__.py", "parts/__init__.py", "parts/helper.py", "model.py"):
        (package / name).write_text("")
    before = kernel_cache.cache_folder((str(package / "model.py"),))
    (package / "parts/helper.py").write_text("SIZE = 2\n")
    kernel_cache.cache_folder.cache_clear()
    assert kernel_cache.cache_folder((str(package / "model.py"),)) != before


def test_a_member_that_is_imported_from_the_package_itself_is_in_the_digest() -> None:
    assert "allocators/_stack.py" in sources_of("allocators/pymalloc/__init__.py")
    assert "allocators/bump.py" in sources_of("allocators/pymalloc/__init__.py")


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("REPLAY_CACHE_DIR", str(tmp_path))
    kernel_cache.cache_folder.cache_clear()
    yield tmp_path
    kernel_cache.cache_folder.cache_clear()


def compilations() -> int:
    """Returns the number of compilations of a call in a new process, with only the cache on disk."""
    kernel = entry(double)
    assert kernel(21) == 42
    return sum(kernel._compiled.stats.cache_misses.values())


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1], flip_a_bit])
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_file_of_machine_code_is_compiled_again(
    own_cache: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    assert (compilations(), compilations()) == (1, 0)
    (file,) = own_cache.rglob(f"*.{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert (compilations(), compilations()) == (1, 0)


COMPILE = """
import numpy as np
from replay.simulation.clock import find_rows
times_ns = np.arange(5)
assert find_rows(times_ns, times_ns[:1], 0, 5, np.empty(1, np.int64)) == [1]
print(sum(find_rows._compiled.stats.cache_misses.values()))
"""


def test_another_copy_of_the_same_sources_compiles_nothing_again(tmp_path: Path) -> None:
    compiled = []
    for copy in (tmp_path / "one", tmp_path / "other"):
        shutil.copytree(PACKAGE, copy / "replay", ignore=shutil.ignore_patterns("__pycache__"))
        environment = {**os.environ, "PYTHONPATH": str(copy), "REPLAY_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True
        )
        compiled.append(int(done.stdout))
    assert compiled == [1, 0]
