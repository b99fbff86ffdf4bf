"""Pages for readers: the card of faces/, the contact sheet, the report on reconstructions with its 3D viewer.

May import: draw models people sources store units.
Start at: card.py and heads_report.py.
"""
