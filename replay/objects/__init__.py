"""Python objects: programs that create, reference and drop objects, and the memory that CPython requests for them.

    language    the schema of an object program in YAML
    scopes      names of a program: what is unknown, unbound or called with wrong arguments
    twin        the same program in plain Python

`docs/objects.md` explains the language.
"""
