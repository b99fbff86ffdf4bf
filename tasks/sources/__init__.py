"""Input archives: folders, buckets, lists, tables, tar and zip, videos; their images and label files decoded.

May import: store.
Start at: discover.py, which lists the images of a source, and read.py, which reads their bytes.
"""
