"""The report of a sweep: the paper's tables, paired differences between methods, plots, one page with all.

Reports of single run folders are made beside this folder.
"""
