"""A linear probe: logistic regression on frozen image features."""

from rmadapter.methods.method import PROBE, Method

LINEAR_PROBE = Method("linear-probe", "logistic regression on frozen image features", kind=PROBE, open_vocabulary=False)
