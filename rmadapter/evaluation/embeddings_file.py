"""Embeddings of images in a file of their own: ``--embeddings FILE``, as numpy or as safetensors have it.

FILE.npz            arrays ``embeddings`` float32 [images, embed] and ``images``, their paths
FILE.safetensors    tensor ``embeddings``; in the metadata ``images``, a JSON list of the paths
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor

from rmadapter.errors import InputError
from rmadapter.files import write_atomic

ENDINGS = (".npz", ".safetensors")
# Of what a record has of an image's embedding.
KEY = "embedding"


def check_embeddings_name(path: str) -> None:
    """Raise InputError unless the name ends as one of ``ENDINGS``."""
    if not path.endswith(ENDINGS):
        raise InputError(f"embeddings is {path!r}; valid: a name that ends in {' or '.join(ENDINGS)}")


def as_text(embedding: Tensor) -> str:
    """The fp32 values of ``embedding`` [embed], on the CPU, as they stand in a journal."""
    return base64.b64encode(embedding.numpy().astype("<f4").tobytes()).decode()


def write_embeddings(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Those of all ``records`` that have an embedding, in their order, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    images, rows = [], []
    for record in records:
        if KEY in record:
            images.append(record["image"])
            rows.append(np.frombuffer(base64.b64decode(record[KEY]), "<f4"))
    embeddings = np.stack(rows)

    def write(temporary: Path) -> None:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:  # by a name numpy would add its ending
                np.savez(file, embeddings=embeddings, images=np.array(images))
        else:
            save_file({"embeddings": embeddings}, temporary, metadata={"images": json.dumps(images)})

    write_atomic(path, write)
