"""Gates: measures cases, compares them with a baseline, and decides whether they pass.

    tolerances   how much worse a metric may get, or how high it may be
    cases        the cases to measure: suites in `replay.toml` or `[tool.replay]` of pyproject.toml
    baselines    the file with earlier measurements
    measuring    simulates or records cases and returns their figures
    judging      compares earlier and new figures by tolerances; returns findings; pure
    causes       compares two traces by phase, domain, size class and call site
    checking     combines them
    history      a row for each check and case; the commits at which a metric changed its level

A simulation is deterministic, so by default the figures of a trace are compared exactly. Recordings of a program vary.
The median of several is compared; their spread is allowed in addition to the tolerance. The default tolerances are
`tolerances.RECORDED_DEFAULTS`.
"""
