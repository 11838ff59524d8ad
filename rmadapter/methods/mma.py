"""MMA (Yang et al., CVPR 2024): the single branch with an r x r layer that both towers share, ReLU.

674,560 trained parameters on ViT-B/16, as published.
"""

from rmadapter.methods.method import NO_CONSISTENCY, NO_RECONSTRUCTION, Method
from rmadapter.methods.rmadapter import ON_IMAGENET

MMA = Method(
    "mma",
    "one branch with a layer shared by both towers",
    (*NO_RECONSTRUCTION, *NO_CONSISTENCY, "--adapter.shared_layer", "--adapter.activation=relu"),
    overrides=ON_IMAGENET,
    # Its best there, and what forgets least (the search in docs/testbed.md); at RMAdapter's 0.15 it falls apart.
    testbed=("--lr=0.0015", "--adapter.scale=0.03"),
)
