"""Allocator stacks: the typed configuration (`stack`), and how presets, files and overrides become one (`loading`)."""

from replay.config.loading import default_preset, load_config, rebuild_config
from replay.config.stack import Costs, Domains, StackConfig, stack_type

__all__ = ["Costs", "Domains", "StackConfig", "default_preset", "load_config", "rebuild_config", "stack_type"]
