"""What open_clip's modules are to a type checker."""

from __future__ import annotations

from typing import Any, TypeAlias

# They are read by the names of their parts, each of which the types of nn.Module take for ``Tensor | Module``. Both are
# nn.Modules: an open_clip CLIP model, and one of its transformer blocks.
ClipModel: TypeAlias = Any
Block: TypeAlias = Any
