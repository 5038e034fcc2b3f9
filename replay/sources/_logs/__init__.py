"""Helpers for readers of text logs: pieces of lines, calls on addresses, block lifetimes, traces."""
