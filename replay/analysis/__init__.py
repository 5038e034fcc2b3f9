"""Summaries and frames of run results. Pure functions."""
