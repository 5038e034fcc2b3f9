"""What a run result means: summaries and frames. Pure functions."""
