"""Many runs: the field's protocols, sweeps over data sets, methods and seeds by several workers, the search.

What a run does is ``training``'s; what its results look like side by side is ``reports``'.
"""
