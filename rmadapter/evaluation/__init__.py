"""What a trained or untouched model says of images: accuracy on a data set, predictions, ``results.json``.

Nothing here trains; tables over several results are made in ``reports``.
"""
