"""Faces to identities and to the versioned, identity-sorted shards of faces/.

May import: sources store units.
Start at: group.py, then shard.py; versions.py reads what they publish.
"""
