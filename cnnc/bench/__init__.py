"""Comparing a target with other systems: each in a process of its own, in turns, on the same model and inputs.

`measure` makes the comparison, `process` and `worker` are the two ends of the pipes between, `systems` says how each
system loads a model, and `report` tells the outcome as a table, JSON or a plot. Nothing is imported here: a worker is
to hold its own system and no more.
"""
