"""Images to faces: detection, 68 landmarks, skin mask, identity descriptor, quality; annotators behind one protocol.

May import: sources store units.
Start at: annotators/base.py: the protocol; annotate.py: the worker of ingest.
"""
