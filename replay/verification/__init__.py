"""Holds the pymalloc model against real ones: address by address, arena event by arena event.

`oracles` finds them, `harness` plays a trace through one, `compare` does the same with the model and tells the two
apart, `shapes` makes traces that are hard on an allocator, `shrinking` makes a trace that shows a difference small.
"""
