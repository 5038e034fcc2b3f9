"""The file of a recording until it is complete: `FILE.part`, locked by its writer.

The lock means that the recording is in progress: it cannot be rescued or overwritten. A part without a lock remains
after a writer was killed. If `FILE.part` is locked, a recording that may overwrite FILE uses the next name,
`FILE.2.part`. Each recording renames its part to FILE at its end.
"""

from pathlib import Path
from typing import BinaryIO

from replay.support.atomic_files import open_locked
from replay.support.errors import OutputError, ReplayError

_NAMES_MAX = 9
EMPTY_BYTES = 4
"""Size of a part without batches, from which nothing can be rescued."""


def part_names(path: Path) -> list[Path]:
    """Returns the possible names of the recording `path` until it is complete."""
    suffixes = ["part", *(f"{number}.part" for number in range(2, _NAMES_MAX + 1))]
    return [path.with_name(f"{path.name}.{suffix}") for suffix in suffixes]


def new_part(path: Path, *, force: bool, name: str | Path) -> tuple[Path, BinaryIO]:
    """Returns the name and the locked file for a new recording. Without `force`, an earlier part is not overwritten.

    Errors call the recording `name`.
    """
    for part in part_names(path):
        file = open_locked(part, wait=False)
        if file is not None:
            if file.seek(0, 2) > EMPTY_BYTES and not force:
                file.close()
                advice = f"save it with `replay record --rescue {name}`, or overwrite it with --force"
                raise OutputError(f"{part}: remains of an interrupted recording; {advice}")
            file.seek(0)
            return part, file
        if not force:
            break
    raise OutputError(f"{name}: a recording to this file is in progress; choose another name")


def interrupted_part(path: Path, *, name: str | Path) -> tuple[Path, BinaryIO]:
    """Returns the name and the locked file of an interrupted recording `path`. Errors call it `name`."""
    existing = [part for part in part_names(path) if part.is_file()]
    for part in existing:
        if file := open_locked(part, wait=False):
            return part, file
    if existing:
        raise ReplayError(f"{name}: the recording is in progress, and its writer completes the file")
    raise ReplayError(f"{part_names(path)[0]}: does not exist, so there is nothing to rescue")
