"""Generates a trace from a workload: SimPy processes decide times, compiled kernels draw sizes and lifetimes."""
