"""The test bed's experiments: how the bundled drawings and the small CLIP were made, the demo, the search.

Programs to be run, which use every other room; nothing else imports them.
"""
