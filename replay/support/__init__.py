"""What every package may use and what depends on none: errors, units, files written whole, names, progress."""
