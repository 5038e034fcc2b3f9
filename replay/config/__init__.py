"""Allocator stacks: `stack` has the typed configuration, `loading` makes it from presets, files and overrides.

`recorded` finds the stack of a recorded process.
"""

from replay.config.loading import load_config, rebuild_config
from replay.config.recorded import Difference, default_environment, default_preset, differences, without_pymalloc
from replay.config.stack import Costs, Domains, StackConfig, stack_type

__all__ = [
    "Costs",
    "Difference",
    "Domains",
    "StackConfig",
    "default_environment",
    "default_preset",
    "differences",
    "load_config",
    "rebuild_config",
    "stack_type",
    "without_pymalloc",
]
