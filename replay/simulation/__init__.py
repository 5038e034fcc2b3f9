"""Runs a trace through an allocator stack: clock, loop, several processes; a run result comes out."""
