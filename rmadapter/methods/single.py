"""The single-branch adapter: RMAdapter without reconstruction and consistency."""

from rmadapter.methods.method import Method

NO_RECONSTRUCTION = ("--no-adapter.reconstruct", "--loss.lambda1=0", "--loss.lambda2=0")
NO_CONSISTENCY = ("--loss.lambda3=0", "--loss.lambda4=0")

SINGLE = Method("single", "one branch, cross-entropy alone", (*NO_RECONSTRUCTION, *NO_CONSISTENCY))
