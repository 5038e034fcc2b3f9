"""Kernels are compiled with private modules of numba: a release that was not tested is refused here, not by a crash."""

import re
from importlib.metadata import requires

import numba

from replay.jit._numba import TESTED_VERSIONS


def minor(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def test_the_installed_numba_is_one_that_the_private_modules_were_tested_with() -> None:
    oldest, newest = map(minor, TESTED_VERSIONS)
    assert oldest <= minor(numba.__version__) <= newest, (
        f"numba {numba.__version__} is outside {TESTED_VERSIONS[0]} to {TESTED_VERSIONS[1]}: run the whole suite with "
        "it, mend replay/jit/_numba where it fails, and widen TESTED_VERSIONS and the range in pyproject.toml"
    )


def test_the_package_requires_no_other_versions() -> None:
    (required,) = [each for each in requires("alloc-replay") or [] if re.match(r"numba\b", each)]
    oldest, newest = TESTED_VERSIONS
    major, last = minor(newest)
    assert sorted(required.removeprefix("numba").split(",")) == [f"<{major}.{last + 1}", f">={oldest}"]
