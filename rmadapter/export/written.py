"""The files of one format: written whole or not at all, and compared with the model before they get their names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from rmadapter.errors import InputError, reason
from rmadapter.export.formats import Format, Run
from rmadapter.export.graphs import PROBABILITIES, ClassifierGraph, Graph, TextGraph, probabilities_of
from rmadapter.export.tracing import TRACED_ROWS, first_line

LARGEST_DIFFERENCE = 1e-4  # of a probability, in fp32


@dataclass(frozen=True)
class Written:
    """A classifier in files.

    Attributes:
        name: of the format, and of what was done to it.
        graphs: what the files compute, in their order.
        files: their names.
        folder: where they are.
        difference: the largest of a probability from the model's, on random images.
        size: bytes of the files, those with the weights beside them counted.
    """

    name: str
    graphs: Sequence[Graph]
    files: list[str]
    folder: Path
    difference: float
    size: int

    def load(self, form: Format) -> FileAnswers:
        """What answers from the files."""
        return FileAnswers(self.graphs, [form.load(self.folder / file, graph.outputs) for graph, file in self._pairs()])

    def _pairs(self) -> Iterator[tuple[Graph, str]]:
        return zip(self.graphs, self.files, strict=True)


class FileAnswers:
    """A classifier of loaded files: images to probabilities.

    Args:
        graphs: what the files compute.
        runs: the files as functions.
    """

    def __init__(self, graphs: Sequence[Graph], runs: Sequence[Run]):
        self.image = runs[0]
        self.of_classes: dict[str, Tensor] = {}
        for graph, run in zip(graphs, runs, strict=True):
            if isinstance(graph, TextGraph):
                self.of_classes = run(graph.tokens(graph.classifier.class_names))

    def __call__(self, images: Tensor) -> Tensor:
        """Probabilities [n, classes]."""
        found = self.image(images)
        return found[PROBABILITIES] if PROBABILITIES in found else probabilities_of({**found, **self.of_classes})


def write_files(
    form: Format, graphs: Sequence[Graph], programs: Sequence[ExportedProgram], model: ClassifierGraph, folder: Path
) -> Written:
    """The traced ``graphs`` as files of ``form`` in ``folder``, after they have answered as ``model`` does.

    Raises:
        InputError: a part that the format cannot hold, answers that differ, a folder that cannot be written.
    """
    names = [f"{graph.part}{form.suffix}" for graph in graphs]
    with made_whole(folder) as beside:
        for graph, program, name in zip(graphs, programs, names, strict=True):
            try:
                form.write(program, graph, beside / name)
            except OSError:
                raise
            except Exception as error:  # exporters and compilers raise errors of all kinds
                said = first_line(error)
                raise InputError(f"the {graph.part} cannot be exported as {form.name}: {said}") from error
        found = measured(form.name, form, graphs, names, model, beside, folder)
        if not found.difference <= LARGEST_DIFFERENCE:
            raise InputError(
                f"{' and '.join(graph.part for graph in graphs)} cannot be exported as {form.name}: a probability "
                f"differs from the model's by {found.difference:.2g}; valid: {LARGEST_DIFFERENCE:g} at most"
            )
    return found


@torch.no_grad()
def measured(
    name: str,
    form: Format,
    graphs: Sequence[Graph],
    files: list[str],
    model: ClassifierGraph,
    beside: Path,
    folder: Path,
) -> Written:
    """What was written to ``beside``, and is to be in ``folder``, with how far its answers are from the model's."""
    size = sum(path.stat().st_size for path in beside.iterdir() if path.name.startswith(tuple(files)))
    answers = Written(name, graphs, files, beside, 0.0, size).load(form)
    images = model.example(TRACED_ROWS + 1)
    difference = float((answers(images) - model(images)[PROBABILITIES]).abs().max())
    return Written(name, graphs, files, folder, difference, size)


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder for files that stand in ``folder`` (made if missing) once the context has ended without an error.

    Not ``files.write_atomic``: a format may write several files, which speak of one another by name.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rmadapter-", dir=folder) as made:
            yield Path(made)
            for path in sorted(Path(made).iterdir(), reverse=True):  # weights beside a file before the file itself
                os.replace(path, folder / path.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error
