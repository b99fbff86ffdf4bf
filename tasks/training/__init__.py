"""The three training stages: batches of faces, steps on one or many ranks, checkpoints.

May import: draw models people sources store units.
Start at: stage.py: one stage on one rank; ranks.py: a stage on a cluster.
"""
