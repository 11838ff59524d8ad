"""The rows of the paper's ablation table between the single branch and RMAdapter."""

from rmadapter.methods.method import Method
from rmadapter.methods.single import NO_CONSISTENCY, NO_RECONSTRUCTION

ABLATIONS = (
    Method("single+consistency", "no reconstruction", NO_RECONSTRUCTION),
    Method("rmadapter-no-consistency", "no consistency losses", NO_CONSISTENCY),
    Method("rmadapter-separate-down", "reconstruction with a down-projection of its own", ("--adapter.separate_down",)),
    Method("rmadapter-rec1", "reconstruction of one layer", ("--adapter.rec_layers=1",)),
    Method("rmadapter-rec3", "reconstruction of three layers", ("--adapter.rec_layers=3",)),
    Method("rmadapter-l1", "L1 reconstruction", ("--adapter.objective=l1",)),
    Method("rmadapter-cosine", "cosine reconstruction", ("--adapter.objective=cosine",)),
)
