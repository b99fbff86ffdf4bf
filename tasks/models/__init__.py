"""The model of a run: bundle and checkpoint by URI with their hashes, and the optional output columns.

May import: store.
Start at: loading.py: `load_model`.
"""
