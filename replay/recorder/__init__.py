"""Records a live CPython: every call of its allocators, with the arenas they took.



    recorded program    `tap` installs the hooks, which are machine code and write records into a ring in shared memory;
                        `sites` prepares the hooks that record call sites
    before it starts    `hook_code` finds that machine code, of the kinds in `hook_kinds`; `hooks`, `site_hooks` and
                        `type_hooks` generate it with `machine_code`; `frames` has CPython's struct layouts
    writer process      `ring` reads records, `translation` converts them to events, `counting` reads pymalloc's own
                        statistics, `growing_file` (with `thrift`) writes the file, whose name `part` chooses; `notes`
                        and `line_table` resolve call sites; `writer` has the loop
    `replay record`     `launch` (with `signals`): the writer is the parent process of the program
    `replay.record`     `session`: the program starts a writer that is not its child, `detached`; `marks` for phases

No module in the recorded program imports NumPy or numba, so that imported modules and heap are the same as without the
recorder.
"""
