"""RMAdapter (Lin et al., AAAI 2026) itself: the defaults of ``rmadapter train``."""

from rmadapter.methods.method import IMAGENET, TRANSFER, Method

# MMA's settings on ImageNet, which RMAdapter takes over; for testing on other data sets one epoch, four blocks.
ON_IMAGENET = {IMAGENET: ("--batch_size=128",), TRANSFER: ("--epochs=1", "--adapter.layers=last:4")}

RMADAPTER = Method(
    "rmadapter", "two branches, adaptation and reconstruction, with consistency losses", overrides=ON_IMAGENET
)
