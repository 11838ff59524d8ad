"""What is minimised: the terms of the loss as functions of features, logits and per-token losses.

No model is run here, and no optimiser.
"""
