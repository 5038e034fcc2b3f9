"""Many runs: configurations of a sweep over its traces, here or on a cluster, and what they say together.

    plan             a sweep as it is written: parameters, values, constraints, traces
    space            values of parameters, and points of their space
    configurations   points as allocator stacks, or set aside with the reason
    traces           the inputs, each decoded once
    outcomes         one run: task -> outcome
    threads, cluster the engines: tasks -> outcomes as they come
    journal          outcomes on disk as they come
    sweep            where they meet
    search           which points to try next, when not all
    results          the frame
    analysis         pure: ranking, main effects, Pareto front

A parameter's value leads to a stack, a stack and an input to a task, a task to an outcome. Outcomes are known by what
they are of, a digest of stack and trace; rows are made from the plan and the outcomes that are there. So a sweep that
is resumed, widened, or run elsewhere has the same rows in the same order.
"""
