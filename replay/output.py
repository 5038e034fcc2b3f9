"""Writes a result whole or not at all: under a temporary name in the same folder, renamed at the end."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from replay.errors import OutputError


@contextmanager
def new_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` when the block ends, and is gone if the block fails.

    A file that exists is refused unless `force`; anything that is no plain file (a folder, a device) always is.
    """
    target = new_target(path, force=force)
    temporary = temporary_beside(target)
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if not concerns_output(error, temporary, target):
            raise
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing was
            temporary.unlink(missing_ok=True)


def concerns_output(error: OSError, *outputs: Path) -> bool:
    """Whether the system's error can be about these outputs, and not about an input or about memory."""
    if error.errno == errno.ENOMEM:
        return False
    return error.filename is None or str(error.filename).startswith(tuple(map(str, outputs)))


def write_in_memory(write: Callable[[BinaryIO], object], path: Path) -> None:
    """Writes a file in memory first: polars does not name the system's error, such as that the disk is full."""
    content = BytesIO()
    write(content)
    path.write_bytes(content.getbuffer())


def temporary_beside(target: Path) -> Path:
    """A name in the same folder that nothing has."""
    name = os.fsencode(target.name)[:200].decode(errors="ignore")  # a name's limit is 255 bytes
    return target.with_name(f".{name}.{uuid4().hex[:12]}.part")


def resolve_output(path: str | Path) -> Path:
    """Returns the absolute path of an output with all links followed: the link stays, and its file is replaced.

    A path that cannot exist, such as a loop of links, is an OutputError.
    """
    target = Path(os.path.realpath(path))
    try:
        target.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return target


def new_target(path: str | Path, *, force: bool = False) -> Path:
    """Where a file called `path` goes; refused as `new_file` does."""
    target = resolve_output(path)
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: is not a plain file, so it cannot be replaced; choose another name")
    if target.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if not target.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {target.parent}; make it first")
    return target
