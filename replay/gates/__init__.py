"""Gates: compares what is measured now with a baseline, and decides whether it passes.

    tolerances   how much worse a metric may get, or how high it may be
    cases        what is measured: suites in `replay.toml` or `[tool.replay]` of pyproject.toml
    baselines    the file of what was measured before
    measuring    cases -> figures, simulated or recorded now
    judging      pure: figures before and now, tolerances -> findings
    causes       which phase, domain, size class and call site brought a difference, from two traces
    checking     combines them
    history      a row a check, and the commit where a metric stepped

A simulation is deterministic, so by default the figures of a trace are compared exactly. Recordings of a program vary.
The median of several is compared; their spread is allowed in addition to the tolerance. The default tolerances are
`tolerances.RECORDED_DEFAULTS`.
"""
