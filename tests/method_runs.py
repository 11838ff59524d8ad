"""Small runs of every method, as the tests of methods train them."""

from __future__ import annotations

from rmadapter.methods import METHODS

TRAINING = ["--shots", "4", "--epochs", "1", "--adapter.layers", "2-3", "--classes", "base"]
SHALLOW = ["--prompt.text_depth", "2", "--prompt.vision_depth", "2"]


def training_of(name):
    """``TRAINING`` for a method: where it has deep tokens for a model of three blocks, and in few steps."""
    method = METHODS[name]
    adapters = ["--adapter.layers", "2-3"] if "adapter" in method.groups else []
    own = {"vpt": SHALLOW[2:], "clip-lora": ["--steps_per_shot", "2"], "mmrl": ["--space.layers", "2-3"]}
    deep = SHALLOW if name in ("ivlp", "maple", "promptsrc", "coprompt") else own.get(name, [])
    few = ["--batch_size", "4", "--average", "1,1"] if name == "promptsrc" else ["--batch_size", "4"]
    return ["--shots", "4", "--epochs", "1", "--classes", "base", *adapters, *deep, *few]
