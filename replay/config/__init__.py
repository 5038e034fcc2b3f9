"""Allocator stacks: the typed configuration (`stack`), and how presets, files and overrides become one (`loading`).

`recorded` finds the stack that a recording was made on.
"""

from replay.config.loading import load_config, rebuild_config
from replay.config.recorded import Difference, default_preset, differences
from replay.config.stack import Costs, Domains, StackConfig, stack_type

__all__ = [
    "Costs",
    "Difference",
    "Domains",
    "StackConfig",
    "default_preset",
    "differences",
    "load_config",
    "rebuild_config",
    "stack_type",
]
