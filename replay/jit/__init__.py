"""Compiles plain functions to machine code: kernels, structs passed by reference, CPU instructions that numba lacks."""
