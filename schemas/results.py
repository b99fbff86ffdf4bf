"""What the rows of each flow mean, as one integer a flow, raised by hand when it changes.

A plan stores the integer, so that one dataset never mixes rows of two meanings unnoticed. A change of the code alone
does not count: an error text, a faster loop or a comment leave every dataset valid. tests/test_results.py compares
golden rows of every flow and fails where they change and the integer did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By the plan's `config.flow`; "samples" is what training draws from a faces/ dataset.
RESULT_VERSIONS = {
    "ingest": 1,
    "reconstruct": 1,
    "synth": 1,
    "evaluate": 1,
    "export": 1,
    "animate": 1,
    "samples": 1,
}
# What each new version changed, by flow and version, for the error message about earlier rows.
RESULT_CHANGES: dict[tuple[str, int], str] = {}
# Settings that are newer than some plans, by dotted name, with their value in plans without them.
LATER_SETTINGS: dict[str, Any] = {
    "annotate.sidecar.mask_values": None,
    "source.zip_encoding": "cp437",
    "upright_from": 180.0,  # no face was turned for the networks
    "sparse": True,  # morph targets of a GLB file named only the vertices that they move
}


def result_version(config: Mapping[str, Any]) -> int:
    """Return the current result version of rows made under a plan's `config`."""
    return RESULT_VERSIONS.get(config.get("flow", ""), 1)


def changes_since(flow: str, version: int) -> str:
    """Return what later versions of a flow changed, for a message; empty where nothing is recorded."""
    later = range(version + 1, RESULT_VERSIONS.get(flow, 1) + 1)
    return "; ".join(RESULT_CHANGES[flow, one] for one in later if (flow, one) in RESULT_CHANGES)
