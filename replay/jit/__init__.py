"""Machine code: how plain functions are compiled, structs passed by reference, CPU instructions that numba lacks."""
