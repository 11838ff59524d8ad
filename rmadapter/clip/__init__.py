"""Everything that knows a CLIP model: loading it by name, where its towers and their parts are, its frozen mathematics.

Nothing here is trained, and nothing knows of adapters, losses or runs.
"""
