"""Which replay this is."""

import hashlib
from functools import cache
from pathlib import Path

from replay import __version__


@cache
def identity() -> str:
    """The version and a digest of the sources: two that are equal give equal results."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"
