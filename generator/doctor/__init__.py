"""Model repositories read, whoever made them: what is wrong with them, where, and what to do about it.

Nothing of a repository is run or imported: configurations are parsed, headers are read, model.py is read as syntax.
"""
