"""Evaluation: worlds with known truth, the NoW benchmark, figures with intervals, ablations, and their reports.

May import: annotate draw models sources store units.
Start at: evaluate.py: the worker; evaluation_report.py: rows to figures.
"""
