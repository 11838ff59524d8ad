"""A model behind HTTP: a page to try it, and the same as JSON.

Here belong what reads and limits requests, what gathers them into batches, and the page. Answers are made by the
classifiers of the rooms below; files of images and of results are ``rmadapter predict``'s.
"""
