"""Writes files atomically: under a temporary name in the same folder, renamed at the end."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from replay.support.errors import OutputError, cannot_be_written

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of `link` on file systems without hard links, such as FAT."""


@contextmanager
def new_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a temporary path. At the end of the block it is renamed to `path`; if the block fails, it is removed.

    An existing file is refused unless `force`, even if another program creates it in the meantime. Anything but a plain
    file (a folder, a device) is always refused.
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
        raise cannot_be_written(path, error) from error
    finally:
        with suppress(OSError):  # the temporary file does not exist if the folder is not writable
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Renames `temporary` to `target` atomically. Raises FileExistsError if `target` exists, unless `force`."""
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))  # an empty file, so that no other process creates it
        temporary.replace(target)
    else:
        temporary.unlink()


def open_locked(path: Path, *, wait: bool) -> BinaryIO | None:
    """Opens a file for reading and writing, creates it if it is missing, and locks it until it is closed.

    If another process has the lock: waits for it, or returns None unless `wait`. While the file is locked, `path` is
    this file or a file that the owner of the lock put in its place.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        with suppress(FileNotFoundError):  # renamed or removed by the previous owner of the lock
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return file
        file.close()


def exists_already(path: str | Path) -> str:
    """Returns the error message for an existing file."""
    return f"{path}: already exists; choose another name or overwrite it with --force"


def concerns_output(error: OSError, *outputs: Path) -> bool:
    """Whether a system error can be about these outputs, not about an input or memory."""
    if error.errno == errno.ENOMEM:
        return False
    return error.filename is None or str(error.filename).startswith(tuple(map(str, outputs)))


def write_in_memory(write: Callable[[BinaryIO], object], path: Path) -> None:
    """Writes to memory first and then to a file, because polars hides system errors such as a full disk."""
    content = BytesIO()
    write(content)
    path.write_bytes(content.getbuffer())


def temporary_beside(target: Path) -> Path:
    """Returns an unused name in the same folder."""
    name = os.fsencode(target.name)[:200].decode(errors="ignore")  # a name's limit is 255 bytes
    return target.with_name(f".{name}.{uuid4().hex[:12]}.part")


def resolve_output(path: str | Path) -> Path:
    """Returns the absolute path of an output with all links resolved, so that a link stays and its file is replaced.

    Raises OutputError for an impossible path, such as a loop of links.
    """
    target = Path(os.path.realpath(path))
    try:
        target.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise cannot_be_written(path, error) from error
    return target


def new_target(path: str | Path, *, force: bool = False) -> Path:
    """Returns the resolved path of an output; refuses the same paths as `new_file`."""
    target = resolve_output(path)
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: is not a plain file, so it cannot be replaced; choose another name")
    if target.exists() and not force:
        raise OutputError(exists_already(path))
    _refuse_missing_parent(path, target)
    return target


def new_folder_target(folder: Path) -> Path:
    """Returns the resolved path of a folder for output, which may exist; refuses a file and a missing parent."""
    target = resolve_output(folder)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{folder}: is not a folder; choose another name")
    _refuse_missing_parent(folder, target)
    return target


def has_already(folder: Path, content: str, advice: str = "") -> OutputError:
    """Returns the error for a folder with results. `advice`: what else can be done."""
    return OutputError(f"{folder}: already has {content}; {advice}choose another folder, or overwrite it with --force")


def _refuse_missing_parent(path: str | Path, target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"{path}: the folder {target.parent} does not exist; make it first")
