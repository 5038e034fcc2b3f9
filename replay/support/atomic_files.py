"""Writes a result whole or not at all: under a temporary name in the same folder, renamed at the end."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from replay.support.errors import OutputError

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What `link` fails with on file systems that have no hard links, such as FAT."""


@contextmanager
def new_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` when the block ends, and is gone if the block fails.

    A file that exists is refused unless `force`, also one that another program has made in the meantime; anything that
    is no plain file (a folder, a device) always is.
    """
    target = new_target(path, force=force)
    temporary = temporary_beside(target)
    try:
        yield temporary
        try:
            publish(temporary, target, force=force)
        except FileExistsError:
            raise OutputError(exists_already(path)) from None
    except OSError as error:
        if not concerns_output(error, temporary, target):
            raise
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing was
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Renames `temporary` to `target`, in one step; a FileExistsError unless `force` if there is such a file."""
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))  # an empty file of ours, which nobody else replaces
        temporary.replace(target)
    else:
        temporary.unlink()


def open_locked(path: Path, *, wait: bool) -> BinaryIO | None:
    """Opens a file for reading and writing, made if it is missing, and locks it until it is closed.

    Where another process holds the lock, it is waited for, or None is returned unless `wait`. While the lock is held,
    `path` names this very file, or what its holder puts there.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        with suppress(FileNotFoundError):  # renamed or removed by who had the lock before
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return file
        file.close()


def exists_already(path: str | Path) -> str:
    """The sentence for a file that is there."""
    return f"{path}: exists already; choose another name or overwrite it with --force"


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
        raise OutputError(exists_already(path))
    if not target.parent.is_dir():
        raise OutputError(f"{path}: the folder {target.parent} does not exist; make it first")
    return target
