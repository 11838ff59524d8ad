"""The image tower through torch.compile: when that pays, and what stands in its place where it cannot be had."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.clip.towers import find_towers
from rmadapter.clip.types import ClipModel
from rmadapter.errors import InputError, printable_line
from rmadapter.runtime import compiler_obstacle

COMPILE = ("auto", "yes", "no")
AUTO, YES, NO = COMPILE

# From that many images of ViT-B-16 on it is done. On two cores of a CPU with AMX, in bf16, the tower alone encodes 20.7
# images a second as it is and 32.7 compiled; 14 s of compiling are saved after 790 images. A busier machine, and one
# that gains less, needs more. Both the time that is saved and the time to compile grow with the number of blocks, which
# is left out here therefore; the former also with a block's tokens and matrices.
BREAK_EVEN = 1500 * 197 * 12 * 768**2

MOST_SAID = 200  # characters of what a compiler says


def pays(clip: ClipModel, images: int) -> bool:
    """Whether so many ``images`` are worth compiling the image tower of ``clip`` for.

    In bf16 on a CPU alone, which is where that was measured, and with blocks whose work is known.
    """
    if clip.logit_scale.device.type != "cpu":
        return False
    try:
        tower = find_towers(clip)["vision"]
    except InputError:  # no transformer: such a model classifies all the same
        return False
    if tower.dtype != torch.bfloat16:
        return False
    matrices = sum(p.numel() for p in tower.blocks[0].parameters() if p.dim() == 2)
    return images * tower.kind.size(tower.root) * matrices >= BREAK_EVEN


class CompiledImages:
    """``image_features`` of a classifier as one compiled graph, for batches of up to ``rows`` images.

    The graph is of ``rows`` images. Smaller batches, the last one and those with images that cannot be read, are filled
    up, or they would be compiled for anew. The weights are constants of the graph, in the layout that the processor
    multiplies in: that takes memory for the tower's matrices once more, and changes of them have no effect any more.

    Attributes:
        seconds: what compiling took.

    Raises:
        Exception: what torch.compile raises, also for a tower that is not one graph.
    """

    def __init__(self, model: CLIPClassifier, rows: int, size: int):
        import torch._inductor.config as inductor  # takes a second to import

        began = time.perf_counter()
        self._rows = rows
        self._features = torch.compile(model.image_features, fullgraph=True, dynamic=False)
        # Not torch.compile(options=...): the part of the compiler that decides whether parameters are inputs of the
        # graph, and so no constants, reads this setting itself.
        with inductor.patch(freezing=True):
            self(torch.zeros(1, 3, size, size, device=model.clip.logit_scale.device))
        self.seconds = time.perf_counter() - began

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [n, embed] of ``images`` [n, 3, size, size] in fp32, not normalised; n is at most ``rows``."""
        count, missing = len(images), self._rows - len(images)
        if missing:
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
        return self._features(images)[:count]


def compiled_images(
    wanted: str, model: CLIPClassifier, images: int, batch_size: int, size: int
) -> CompiledImages | None:
    """The compiled image tower of ``model`` for ``images`` images of ``size`` pixels, or None: as it is.

    ``wanted`` is one of COMPILE. Without a compiler, or where it fails, it is None with a warning that says why.
    """
    if not images or wanted == NO or (wanted == AUTO and not pays(model.clip, images)):
        return None
    why = compiler_obstacle(model.clip.logit_scale.device)
    if why is None:
        try:
            return CompiledImages(model, min(batch_size, images), size)
        except Exception as error:  # torch.compile raises errors of all kinds
            why = " ".join(printable_line(error).split())[:MOST_SAID] or type(error).__name__
    warnings.warn(f"the image tower is not compiled, and takes longer: {why}", stacklevel=2)
    return None
