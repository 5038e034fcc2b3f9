"""Simulates a trace with an allocator stack (clock, loop, several processes), and returns a run result."""
