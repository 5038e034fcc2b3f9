"""The cache of machine code: which source files each entry's code depends on."""

from pathlib import Path

from replay.jit import kernel_cache

PACKAGE = Path(kernel_cache.__file__).parents[1]


def sources_of(module: str) -> set[str]:
    files = kernel_cache._with_imported([PACKAGE / module])
    return {str(path.relative_to(PACKAGE)) for path in files}


def test_code_of_the_simulation_depends_on_all_models_and_on_no_format_or_command() -> None:
    sources = sources_of("simulation/loop.py")
    assert {"allocators/glibc/arena.py", "allocators/pymalloc/__init__.py", "jit/_numba/pipeline.py"} <= sources
    assert not [path for path in sources if path.startswith(("sources/", "commands/", "workload/", "recorder/"))]


def test_what_the_imported_files_import_counts_too() -> None:
    sources = sources_of("sources/heaptrack.py")
    assert {"sources/heaptrack.py", "sources/_logs/calls.py", "sources/_logs/block_lifetimes.py"} <= sources
    assert "sources/mtrace.py" not in sources


def test_the_folder_changes_with_the_source_of_an_imported_file(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("from replay.support.limits import MAX_SIZE\n")
    before = kernel_cache.cache_folder((str(model),))
    model.write_text("from replay.support.limits import MAX_SIZE as LIMIT\n")
    kernel_cache.cache_folder.cache_clear()
    kernel_cache._imported.cache_clear()
    assert kernel_cache.cache_folder((str(model),)) != before
