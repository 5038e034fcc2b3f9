"""Compares models with real allocators, address by address and arena event by arena event.

`oracles` finds real allocators, `harness` runs a trace with one, `compare` runs the model and compares both. `shapes`
makes traces that exercise rare rules, `shrinking` reduces a trace on which both differ.
"""

ONE_PROCESS = "only one process at a time can be compared with a real allocator"
"""Why a trace of several processes is refused."""
