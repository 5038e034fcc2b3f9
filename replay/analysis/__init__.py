"""Summaries and polars frames of run results. Pure functions."""
