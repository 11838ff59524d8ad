"""The frozen matrices of an ONNX file in 8 bits, by onnxruntime's dynamic quantisation; what is trained stays as it is.

A node's matrix is frozen where its values are those of one of the base model's, as they lie there or transposed:
exporters rename and turn what they store.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from rmadapter.errors import InputError
from rmadapter.export.formats import errors_alone


def _digest(matrix: Tensor) -> bytes:
    return sha256(matrix.float().contiguous().cpu().numpy().tobytes() + str(tuple(matrix.shape)).encode()).digest()


def quantize(source: Path, target: Path, frozen: Iterable[Tensor]) -> int:
    """Write the ONNX file ``source`` to ``target`` with those of its matrices that are ``frozen`` in 8 bits.

    Each output of a matrix has a scale of its own, and activations are quantised as they come. Returns how many
    matrices it was.

    Raises:
        InputError: the file has none of them.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    matrices = [matrix.detach() for matrix in frozen if matrix.dim() == 2]
    known = {_digest(turned) for matrix in matrices for turned in (matrix, matrix.T)}
    graph = onnx.load(source).graph
    values = {entry.name: entry for entry in graph.initializer if len(entry.dims) == 2}
    nodes = []
    for node in graph.node:
        matrix = values.get(node.input[1]) if node.op_type == "MatMul" else None
        if matrix is not None:
            array = onnx.numpy_helper.to_array(matrix, str(source.parent))
            if _digest(torch.from_numpy(array.copy())) in known:
                nodes.append(node.name)
    if not nodes:
        raise InputError("int8: the file has no product with a matrix of the base model; valid: without --int8")
    with errors_alone("root"):
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            # Products of 8 with 8 bits overflow on processors without VNNI; those with 7 bits do not.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
    return len(nodes)
