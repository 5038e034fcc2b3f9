"""Settings of musl's malloc, and the rules by version."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Version = Literal["1.2.2", "1.2.3", "1.2.4", "1.2.5", "1.2.6"]
VERSIONS = get_args(Version)
LAZY_VERSIONS = ("1.2.2", "1.2.3")
"""Versions that call madvise(MADV_FREE) for whole pages of a free slot."""


class Config(BaseModel):
    """The malloc of musl ("mallocng"), as in Alpine Linux. It has no settings but its version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Version = Field(
        "1.2.5", description="Version of musl. Up to 1.2.3, whole pages of a free slot are released lazily (MADV_FREE)."
    )
