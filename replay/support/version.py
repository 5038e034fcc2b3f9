"""The identity of this version of replay."""

from functools import cache
from pathlib import Path

from replay import __version__
from replay.support.digests import digest_files


@cache
def identity() -> str:
    """Returns the version and a digest of the sources. Equal identities produce equal results."""
    folder = Path(__file__).parents[1]
    digest = digest_files((str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*.py")))
    return f"{__version__}+{digest[:8]}"
