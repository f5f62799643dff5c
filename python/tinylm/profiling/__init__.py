"""What a run costs before it begins, and where its time goes: `python -m tinylm.profiling`.

`estimate` counts parameters, operations and memory; training asks it before its first step.
"""
