"""Pure tensor functions. A function goes in a file named after what it computes.

A kernel gets a folder: ``reference.py`` states it in plain dense PyTorch, the fast versions stand beside it,
``__init__.py`` exports the one to use. Tests compare output and every gradient in float64.
"""
