"""Zero-shot CLIP with each data set's published prompt; it trains nothing."""

from rmadapter.methods.method import UNTRAINED, Method

ZEROSHOT = Method("zeroshot", "the frozen model and the data set's own prompt", kind=UNTRAINED, seeded=False)
