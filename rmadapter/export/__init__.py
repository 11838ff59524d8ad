"""Models as files for other software: what a file computes, how it is traced, the formats it is written in, its check.

What such files are compared with, accuracies and loaded models, is the subject of ``rmadapter.evaluation``.
"""
