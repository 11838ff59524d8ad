"""Tables, plots and pages from results that are there, beside published numbers.

Nothing here trains, evaluates or loads a model.
"""
