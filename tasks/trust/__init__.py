"""Erasure with its audit, migration of datasets of earlier schemas, and the check of a machine.

May import: people reports store units.
Start at: erase.py.
"""
