"""The single-branch adapter: RMAdapter without reconstruction and consistency."""

from rmadapter.methods.method import NO_CONSISTENCY, NO_RECONSTRUCTION, Method
from rmadapter.methods.rmadapter import ON_IMAGENET

SINGLE = Method(
    "single", "one branch, cross-entropy alone", (*NO_RECONSTRUCTION, *NO_CONSISTENCY), overrides=ON_IMAGENET
)
