"""The rows of the paper's ablation table between the single branch and RMAdapter, and controls for them."""

from rmadapter.methods.method import NO_CONSISTENCY, NO_RECONSTRUCTION, Method
from rmadapter.methods.rmadapter import ON_IMAGENET


def _row(name: str, summary: str, *options: str) -> Method:
    return Method(name, summary, options, overrides=ON_IMAGENET)


ABLATIONS = (
    _row("single+consistency", "no reconstruction", *NO_RECONSTRUCTION),
    # A control of the comparison itself: more weights, and by its losses the training of the row above.
    _row(
        "rmadapter-lambda0",
        "a reconstruction branch without weight in the loss",
        "--loss.lambda1=0",
        "--loss.lambda2=0",
    ),
    _row("rmadapter-no-consistency", "no consistency losses", *NO_CONSISTENCY),
    _row("rmadapter-consistency1", "a tenth of the consistency losses", "--loss.lambda3=1", "--loss.lambda4=2.5"),
    _row("rmadapter-pooled", "reconstruction of the pooled token alone", "--adapter.rec_tokens=pooled"),
    _row("rmadapter-patches", "reconstruction without the pooled token", "--adapter.rec_tokens=patches"),
    _row("rmadapter-separate-down", "reconstruction with a down-projection of its own", "--adapter.separate_down"),
    _row("rmadapter-rec1", "reconstruction of one layer", "--adapter.rec_layers=1"),
    _row("rmadapter-rec3", "reconstruction of three layers", "--adapter.rec_layers=3"),
    _row("rmadapter-l1", "L1 reconstruction", "--adapter.objective=l1"),
    _row("rmadapter-cosine", "cosine reconstruction", "--adapter.objective=cosine"),
)
