"""The methods that one harness trains, saves, loads, predicts with and compares: each a record in a file of its own.

What belongs here is what tells one method from another; how any of them is trained or evaluated does not.
"""

from __future__ import annotations

from rmadapter.errors import check_choice
from rmadapter.methods.ablations import ABLATIONS
from rmadapter.methods.clip_lora import CLIP_LORA
from rmadapter.methods.cocoop import COCOOP
from rmadapter.methods.compositions import COMPOSITIONS
from rmadapter.methods.coop import COOP, KGCOOP
from rmadapter.methods.coprompt import COPROMPT
from rmadapter.methods.deep_prompts import IVLP, MAPLE, PROMPTSRC, VPT
from rmadapter.methods.feature_methods import CLIP_ADAPTER, TASKRES
from rmadapter.methods.linear_probe import LINEAR_PROBE
from rmadapter.methods.method import Method
from rmadapter.methods.mma import MMA
from rmadapter.methods.mmrl import MMRL
from rmadapter.methods.prograd import PROGRAD
from rmadapter.methods.rmadapter import RMADAPTER
from rmadapter.methods.single import SINGLE
from rmadapter.methods.tip_adapter import TIP_ADAPTER, TIP_ADAPTER_F
from rmadapter.methods.zeroshot import ZEROSHOT

_COMPARATORS = (COOP, COCOOP, KGCOOP, PROGRAD, VPT, IVLP, MAPLE, PROMPTSRC, COPROMPT, CLIP_ADAPTER, TASKRES, CLIP_LORA)
_OTHERS = (MMRL, TIP_ADAPTER, TIP_ADAPTER_F)
_EVERY = (ZEROSHOT, LINEAR_PROBE, *_COMPARATORS, *_OTHERS, SINGLE, MMA, RMADAPTER, *ABLATIONS, *COMPOSITIONS)
METHODS: dict[str, Method] = {method.name: method for method in _EVERY}
# The paper's tables compare RMAdapter with these.
_PUBLISHED = (ZEROSHOT, COOP, COCOOP, KGCOOP, MAPLE, PROMPTSRC, COPROMPT, CLIP_ADAPTER, MMA, RMADAPTER)
PAPER_TABLE = tuple(method.name for method in _PUBLISHED)
# The paper's ablation table: each of these differs from the last in one respect or a few.
ABLATION_TABLE = (ZEROSHOT.name, SINGLE.name, MMA.name, *(method.name for method in ABLATIONS), RMADAPTER.name)

__all__ = ["ABLATION_TABLE", "METHODS", "PAPER_TABLE", "Method", "get_method"]


def get_method(name: str) -> Method:
    """The method called ``name``; InputError with the names there are."""
    check_choice("method", name, METHODS)
    return METHODS[name]
