"""Programs that make files of the repository: images and pages of docs/, the shipped weights.

May import the product; nothing imports them. Each prints its usage with --help:
figures (docs/conventions) · sheets (docs/world) · dataset_pages (docs/datasets) · training_sheets (docs/train) ·
report_page (docs/report) · shipped (deca_core/weights).
"""
