"""Sweeps: simulates many configurations with one or more traces, on this machine or a cluster, and analyses the
results.

    plan             the schema of a sweep: parameters, values, constraints, traces
    space            values of parameters, and points of their space
    configurations   converts points to allocator stacks, or skips them with the reason
    traces           the inputs, each decoded once
    outcomes         does one task (a run) and returns its outcome
    threads, cluster the engines: do tasks and yield outcomes in the order of completion
    journal          stores outcomes on disk
    sweep            combines them
    search           chooses the next points, if not all are tried
    results          the frame with a row for each run
    analysis         ranking, main effects, Pareto front; pure

A point becomes a stack; a stack and an input become a task; a task has an outcome. The key of an outcome is a digest of
stack and trace. Rows are made from the plan and the outcomes. So a sweep that is resumed, extended, or run elsewhere
has the same rows in the same order.
"""
