"""The kinds of towers that open_clip's models have; importing this registers them."""

from __future__ import annotations

from rmadapter.clip.kinds.hf_text import HF_TEXT
from rmadapter.clip.kinds.open_clip_text import CUSTOM_TEXT, TEXT
from rmadapter.clip.kinds.open_clip_vit import VIT
from rmadapter.clip.kinds.timm_eva import EVA, EVA_POST_NORM
from rmadapter.clip.kinds.timm_relpos import RELPOS
from rmadapter.clip.kinds.timm_vit import TIMM_VIT
from rmadapter.clip.towers import register_tower

for _kind in (RELPOS, *HF_TEXT, EVA, EVA_POST_NORM, TIMM_VIT, CUSTOM_TEXT, TEXT, VIT):
    register_tower(_kind)
