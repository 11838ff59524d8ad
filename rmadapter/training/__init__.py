"""A run from its configuration to its results: the sample, the loop, the run folder with what a resumption needs.

What is in one step is ``step``'s; many runs are ``sweeps``'.
"""
