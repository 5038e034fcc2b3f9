"""A digest of files, for caches that are valid only while these files stay the same."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest_files(files: Iterable[tuple[str, Path]], *, of_more: str = "") -> str:
    """Returns the hexadecimal SHA-256 of names and contents of files in this order, and of the text `of_more`."""
    digest = hashlib.sha256(of_more.encode())
    for name, path in files:
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
