"""The unit protocol: plans frozen into units, units worked on Ray actors, parts and their commit records, tombstones.

May import: sources store.
Start at: plan.py for the files on storage, commit.py for how a unit becomes data, engine.py for the run.
"""
