"""A graph of torch.export from a module: the fused operator by its definition, and no weight that it does not use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind

from rmadapter.errors import InputError
from rmadapter.export.graphs import Graph
from rmadapter_kernels.ops import OPERATORS
from rmadapter_kernels.reference import reference

MOST_SAID = 500  # characters of another library's message
# The number of rows that a graph is traced with; another one than 1, which exporters take for a fixed size.
TRACED_ROWS = 2


def _definition(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    *weights_and_settings,
) -> tuple[Tensor, Tensor]:
    """The forward operator of any backend, in PyTorch's own operations."""
    *weights, scale, activation, objective, local_reconstruction, branch_grad_scale = weights_and_settings[:13]
    return reference(
        x,
        *weights,
        residual=residual,
        norm=None if norm_eps is None else (norm_weight, norm_bias, norm_eps),
        scale=scale,
        activation=activation,
        objective=objective,
        local_reconstruction=local_reconstruction,
        branch_grad_scale=branch_grad_scale,
    )


# The forward operators of all backends -> what stands in a graph in their place.
DEFINITIONS: dict[Any, Callable[..., Any]] = {forward: _definition for forward, _ in OPERATORS.values()}


def first_line(error: Exception) -> str:
    """What ``error`` says, shortened."""
    return " ".join(str(error).split())[:MOST_SAID] or type(error).__name__


def trace(graph: Graph) -> ExportedProgram:
    """``graph`` for any number of rows.

    Raises:
        InputError: torch.export cannot; the message names the graph's part and what torch says.
    """
    example = graph.example(TRACED_ROWS)
    # A side of one pixel is taken for a fixed size, as one row is.
    open_sizes = {number: Dim(name, min=1 if number == 0 else 2) for number, name in graph.dynamic.items()}
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (example,), dynamic_shapes={graph.input: open_sizes})
            if any(node.target in DEFINITIONS for node in program.graph.nodes):  # it takes as long as tracing does
                program = program.run_decompositions(DEFINITIONS)
    except InputError:
        raise
    except Exception as error:  # torch.export raises whatever the traced code and its own passes raise
        raise InputError(f"the {graph.part} cannot be exported: {first_line(error)}") from error
    return without_unused(program)


def without_unused(program: ExportedProgram) -> ExportedProgram:
    """``program`` without the weights that nothing in it reads, such as the other tower's."""
    unused = {node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    specs = program.graph_signature.input_specs
    kept = [spec for spec in specs if spec.kind == InputKind.USER_INPUT or spec.arg.name not in unused]
    for node in list(program.graph.nodes):
        if node.name in unused - {spec.arg.name for spec in kept}:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    names = {spec.target for spec in kept}
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=ExportGraphSignature(kept, program.graph_signature.output_specs),
        state_dict={name: tensor for name, tensor in program.state_dict.items() if name in names},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: value for name, value in program.constants.items() if name in names},
        verifiers=program.verifiers,
    )
