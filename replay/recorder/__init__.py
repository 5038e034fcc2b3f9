"""Records a live CPython: every call of its allocators, with the arenas they took.

    in the program     `tap` sets the hooks, which are machine code and write into a ring of shared memory; `sites` is
                       what they need besides to tell call sites
    made beforehand    `hooks` and `site_hooks`, with `machine_code` and CPython's `frames`: that code, from Python
    in the writer      `ring` hands out records, `translation` makes a trace of them, `counting` reads what pymalloc
                       said of itself, `growing_file` (with `thrift`) keeps it all in a `part`; `notes`, with
                       `line_table`, know the call sites; `writer` is the loop
    from the command   `launch` (with `signals`): the writer is the parent, the program its child
    from Python        `session`: the program starts a writer that is no child of its own, `detached`; `marks`

Nothing that is imported into the program imports NumPy or numba: what a program finds imported already, and the heap it
finds, should be as they are without a recorder.
"""
