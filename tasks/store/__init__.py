"""Storage on any fsspec URI: atomic publish, JSON records, byte ranges, temp files, log lines, the node's cache.

May import: nothing of tasks.
Start at: storage.py: `Store`, one dataset folder.
"""
