"""The formats that a traced graph is written in, and how a file of each is run: one record a format."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from rmadapter.errors import InputError
from rmadapter.export.graphs import Graph

Run = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: what it is called in messages.
        suffix: the end of its files' names.
        packages: what it needs beside torch, of the extra ``onnx``.
        write: writes what was traced of a graph to a path.
        load: the file as a function from its input to its outputs by name; the names are given.
    """

    name: str
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Graph, Path], None]
    load: Callable[[Path, tuple[str, ...]], Run]

    def check_installed(self) -> None:
        """Raise InputError where a package is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"{self.name} needs {', '.join(missing)}, which is missing; pip install 'rmadapter[onnx]'")


@contextmanager
def errors_alone(*loggers: str) -> Iterator[None]:
    """Inside, these loggers say nothing below an error: libraries warn of what their optimisers leave as it is."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)


def _write_onnx(program: ExportedProgram, graph: Graph, path: Path) -> None:
    with errors_alone("onnxscript", "onnx_ir"):
        found = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            output_names=list(graph.outputs),
            dynamic_shapes={graph.input: graph.dynamic},  # of a traced graph no more than names
        )
    assert found is not None  # without a path it is returned
    found.model.metadata_props.update(graph.metadata)
    found.save(path)


def _load_onnx(path: Path, outputs: tuple[str, ...]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def run(x: Tensor) -> dict[str, Tensor]:
        found = session.run(list(outputs), {entry.name: x.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return run


def _write_torch_export(program: ExportedProgram, graph: Graph, path: Path) -> None:
    torch.export.save(program, path, extra_files=dict(graph.metadata))


def _load_torch_export(path: Path, outputs: tuple[str, ...]) -> Run:
    return torch.no_grad()(torch.export.load(path).module())


def _write_aotinductor(program: ExportedProgram, graph: Graph, path: Path) -> None:
    settings = {"aot_inductor.metadata": dict(graph.metadata)}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def _load_aotinductor(path: Path, outputs: tuple[str, ...]) -> Run:
    return torch.no_grad()(torch._inductor.aoti_load_package(str(path)))


# By the option that asks for it.
FORMATS = {
    "onnx": Format("ONNX", ".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "pt2": Format("torch.export", ".pt2", (), _write_torch_export, _load_torch_export),
    # torch wants this ending of an AOTInductor package too.
    "aotinductor": Format("AOTInductor", ".aoti.pt2", (), _write_aotinductor, _load_aotinductor),
}
