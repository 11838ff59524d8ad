"""What is trained inside or beside a frozen CLIP: the adapters, how they get into a tower and out, their files.

How a loss is made of what they give, and how they are updated, is not said here.
"""
