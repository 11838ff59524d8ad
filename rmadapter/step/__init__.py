"""One training step, and all that makes it fast: what is computed once, kept, shared, cut into chunks, recorded.

Here are also the plain step that it is tested against and the exchange between processes; loops and files are not.
"""
