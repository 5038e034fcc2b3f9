"""The cache of machine code: which source files each entry's code depends on."""

from pathlib import Path

from replay.jit import compiling as compiled


def sources_of(module: str) -> set[str]:
    package = Path(compiled.__file__).parent
    files = compiled._with_imported([package / module])
    return {str(path.relative_to(package)) for path in files}


def test_code_of_the_simulation_depends_on_all_models_and_on_no_format_or_command() -> None:
    sources = sources_of("engine.py")
    assert {"player.py", "allocators/glibc/arena.py", "allocators/pymalloc/__init__.py", "compiled.py"} <= sources
    assert not [path for path in sources if path.startswith(("sources/", "commands/", "generator/", "recorder/"))]


def test_what_the_imported_files_import_counts_too() -> None:
    sources = sources_of("sources/heaptrack.py")
    assert {"sources/heaptrack.py", "calls.py", "lives.py"} <= sources
    assert "sources/mtrace.py" not in sources


def test_the_folder_changes_with_the_source_of_an_imported_file(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("from replay.support.limits import MAX_SIZE\n")
    before = compiled.cache_folder((str(model),))
    model.write_text("from replay.support.limits import MAX_SIZE as LIMIT\n")
    compiled.cache_folder.cache_clear()
    assert compiled.cache_folder((str(model),)) != before
