"""RMAdapter (Lin et al., AAAI 2026) itself: the defaults of ``rmadapter train``."""

from rmadapter.methods.method import Method

RMADAPTER = Method("rmadapter", "two branches, adaptation and reconstruction, with consistency losses")
