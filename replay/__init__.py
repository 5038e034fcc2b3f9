"""Replays allocation traces through exact models of pymalloc, malloc and the kernel."""

__version__ = "0.1.0"
