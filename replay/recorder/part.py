"""The file of a recording until it is complete: `FILE.part`, locked by its writer.

While the lock is held the recording is under way, so that it is not rescued or overwritten; a part without a lock is
left of a writer that was killed. Where `FILE.part` is locked, a recording that may overwrite FILE takes the next name,
`FILE.2.part`: whoever ends first publishes its own file.
"""

from pathlib import Path
from typing import BinaryIO

from replay.support.atomic_files import open_locked
from replay.support.errors import OutputError, ReplayError

_NAMES_MAX = 9
EMPTY_BYTES = 4
"""Of a part without any batch, of which nothing can be rescued."""


def part_names(path: Path) -> list[Path]:
    """Where the recording `path` may be until it is complete."""
    suffixes = ["part", *(f"{number}.part" for number in range(2, _NAMES_MAX + 1))]
    return [path.with_name(f"{path.name}.{suffix}") for suffix in suffixes]


def new_part(path: Path, *, force: bool, name: str | Path) -> tuple[Path, BinaryIO]:
    """Returns the name and the locked file for a new recording; without `force` nothing that is left is overwritten.

    `name` is what errors call `path`.
    """
    for part in part_names(path):
        file = open_locked(part, wait=False)
        if file is not None:
            if file.seek(0, 2) > EMPTY_BYTES and not force:
                file.close()
                advice = f"save it with `replay record --rescue {name}`, or overwrite it with --force"
                raise OutputError(f"{part}: is left of a recording that was cut off; {advice}")
            file.seek(0)
            return part, file
        if not force:
            break
    raise OutputError(f"{name}: a recording to this file is under way; choose another name")


def cut_off_part(path: Path, *, name: str | Path) -> tuple[Path, BinaryIO]:
    """Returns the name and the locked file of what is left of the recording `path`; `name` is what errors call it."""
    there = [part for part in part_names(path) if part.is_file()]
    for part in there:
        if file := open_locked(part, wait=False):
            return part, file
    if there:
        raise ReplayError(f"{name}: the recording is under way, and its writer completes the file")
    raise ReplayError(f"{part_names(path)[0]}: there is nothing to rescue")
