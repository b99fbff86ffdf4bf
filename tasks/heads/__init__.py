"""Reconstruction and what works on its rows: consensus, tracks through videos, animation, export.

May import: annotate models people sources store units.
Start at: reconstruct.py: the worker; selection.py: rows to codes and model.
"""
