"""Turns a workload into a trace: SimPy processes decide when, compiled kernels draw what."""
