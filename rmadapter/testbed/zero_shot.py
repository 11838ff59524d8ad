"""What a pretrained small CLIP knows before any adaptation: the groups in every style, and sets that are held out.

    python -m rmadapter.testbed.zero_shot                                               # the bundled weights
    python -m rmadapter.testbed.zero_shot --folder runs/control --corpus runs/corpus

Without ``--corpus`` nothing is held out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from rmadapter.clip import emoji_clip
from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data import Preprocessing
from rmadapter.data.emoji import GROUPS, PREFIX
from rmadapter.data.emoji.atlas import FILES, ONE_DRAWING, classes
from rmadapter.data.emoji.emoji_data import DEFAULT_STYLE, load_emoji
from rmadapter.errors import InputError
from rmadapter.evaluation.answers import answers_of, encode
from rmadapter.evaluation.eval_images import Loading
from rmadapter.files import read_json
from rmadapter.reports.tables import Table
from rmadapter.testbed.corpus_files import Corpus, read_corpus
from rmadapter.testbed.pictures import show

# Of each set that is held out, so many drawings at most, chosen and shown by this seed.
HELD_OUT_COUNT, HELD_OUT_SEED = 500, 7


def load_pretrained(folder: Path) -> Any:
    """The model in ``folder``, an ``open_clip.CLIP`` in fp32 as ``pretrain`` left it.

    Raises:
        InputError: a file is missing or is no such file.
    """
    config = read_json(folder / emoji_clip.CONFIG, "model")
    return emoji_clip.build(config, load_file(folder / emoji_clip.WEIGHTS)).eval()


def zero_shot(folder: Path) -> dict[str, dict[str, float]]:
    """Top-1 in percent by group and style of the weights in ``folder``, among all classes of the group."""
    clip = load_pretrained(folder)
    loading = Loading(Preprocessing.of(clip), workers=0)
    found: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        sets = {style: load_emoji(f"{PREFIX}{group}", style, retention=False) for style in ONE_DRAWING}
        model = CLIPClassifier(clip, emoji_clip.tokenizer(), sets[DEFAULT_STYLE].class_names)
        with torch.no_grad():
            text = model.text_features()
        found[group] = {
            style: answers_of(model, encode(model, data.read, data.test, loading), text).top1
            for style, data in sets.items()
        }
    return found


def as_table(found: dict[str, dict[str, float]]) -> str:
    """``zero_shot``'s accuracies as a Markdown table, with their mean over groups."""
    rows = [
        (group, str(len(classes(group))), *(f"{row[style]:.1f}" for style in ONE_DRAWING))
        for group, row in found.items()
    ]
    means = (f"{np.mean([row[style] for row in found.values()]):.1f}" for style in ONE_DRAWING)
    return Table("", ("group", "classes", *ONE_DRAWING), [*rows, ("mean", "", *means)], aligned=False).markdown()


@torch.no_grad()
def held_out(folder: Path, corpus: Corpus) -> dict[str, tuple[int, int, float]]:
    """Of each set that is held out: drawings shown, names among which, and top-1 in percent."""
    clip = load_pretrained(folder)
    found = {}
    for name in sorted({icon.set for icon in corpus.held_out_icons}):
        generator = np.random.default_rng(HELD_OUT_SEED)
        own = np.array([number for number, icon in enumerate(corpus.held_out_icons) if icon.set == name])
        own = np.sort(generator.permutation(own)[:HELD_OUT_COUNT])
        icons = [corpus.held_out_icons[number] for number in own]
        tiles = torch.from_numpy(corpus.held_out[own]).permute(0, 3, 1, 2).float() / 255
        pictures = show(tiles, np.array([not icon.coloured for icon in icons]), generator)
        names = sorted({icon.name for icon in icons})
        features = clip.encode_image(emoji_clip.normalize(pictures.float() / 255), normalize=True)
        text = CLIPClassifier(clip, emoji_clip.tokenizer(), names).text_features()
        labels = torch.tensor([names.index(icon.name) for icon in icons])
        right = (features @ text.T).argmax(1) == labels
        found[name] = (len(icons), len(names), 100 * right.float().mean().item())
    return found


def held_out_table(found: dict[str, tuple[int, int, float]]) -> str:
    """``held_out``'s accuracies as a Markdown table."""
    rows = [(name, str(drawn), str(names), f"{top1:.1f}") for name, (drawn, names, top1) in found.items()]
    return Table("", ("set", "drawings", "names", "top-1"), rows, aligned=False).markdown()


def describe_folder(folder: Path, corpus: Corpus | None) -> str:
    """The tables of the weights in ``folder``, that of held-out sets where a corpus has them."""
    parts = ["zero-shot top-1 in percent, among the classes of a group:", as_table(zero_shot(folder))]
    if corpus is not None:
        title = "zero-shot top-1 in percent on sets that are held out, among the names of a set:"
        parts += [title, held_out_table(held_out(folder, corpus))]
    return "\n".join(parts)


@dataclass
class ZeroShotConfig:
    """What pretrained weights know before any adaptation.

    Args:
        folder: of ``rmadapter.testbed.pretrain``; default: the bundled weights
        corpus: folder of a broad corpus, for the sets that it holds out
    """

    folder: PathText = str(FILES)
    corpus: PathText = ""


def run_zero_shot(config: ZeroShotConfig) -> None:
    """Print the tables.

    Raises:
        InputError: there are no weights in ``folder``, or no corpus.
    """
    folder = Path(config.folder)
    if not (folder / emoji_clip.WEIGHTS).is_file():
        raise InputError(f"folder has {config.folder!r}, where no {emoji_clip.WEIGHTS} is; valid: what pretrain made")
    print(describe_folder(folder, read_corpus(Path(config.corpus)) if config.corpus else None))


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(ZeroShotConfig, run_zero_shot, argv, prog="python -m rmadapter.testbed.zero_shot")


if __name__ == "__main__":
    sys.exit(main())
