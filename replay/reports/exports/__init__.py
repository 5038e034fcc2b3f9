"""Results for other programs, one format a module."""
