"""The kinds of towers that open_clip's models have, in the order in which they are asked."""

from __future__ import annotations

from rmadapter.clip.kinds.hf_text import HF_TEXT
from rmadapter.clip.kinds.open_clip_text import CUSTOM_TEXT, TEXT
from rmadapter.clip.kinds.open_clip_vit import VIT
from rmadapter.clip.kinds.timm_eva import EVA, EVA_POST_NORM
from rmadapter.clip.kinds.timm_relpos import RELPOS
from rmadapter.clip.kinds.timm_vit import TIMM_VIT

KINDS = (VIT, TEXT, CUSTOM_TEXT, TIMM_VIT, EVA, EVA_POST_NORM, *HF_TEXT, RELPOS)
