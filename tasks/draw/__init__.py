"""Charts as SVG text, image panels and sheets, the skin tone of a face.

May import: nothing of tasks.
Start at: panels.py.
"""
