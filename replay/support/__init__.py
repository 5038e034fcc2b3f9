"""Helpers for every package, which depend on no other package: errors, units, atomic files, names, progress."""
