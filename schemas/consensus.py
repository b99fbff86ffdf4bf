"""The consensus/ dataset beside reconstructions/: one row an identity, the codes that all of its images share.

consensus/_current.json             ConsensusRecord: the current file, and the rows that it was made of
consensus/identities-<sha8>.parquet rows of consensus_schema, sorted by identity_id
"""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from schemas.ledger import StoredFile
from schemas.parquet import fixed_field

SCHEMA_VERSION = 1
CONSENSUS_FOLDER, CURRENT = "consensus", "_current.json"


def consensus_schema(detail: bool) -> pa.Schema:
    """Arrow schema of consensus/. detail: whether the detail code is shared as well."""
    fields = [
        pa.field("identity_id", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # images
        pa.field("used", pa.int64(), nullable=False),  # of them; the others are outliers
        fixed_field("shape", (100,)),
        # Median over the images of the distance to the shared head, millimetres (root mean square over vertices).
        pa.field("spread", pa.float32(), nullable=False),
    ]
    if detail:
        fields.append(fixed_field("detail", (128,)))
        fields.append(pa.field("detail_spread", pa.float32(), nullable=False))  # the same, Euclidean, in code units
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "consensus"})


class ConsensusRecord(BaseModel):
    """`consensus/_current.json`. Contains no time and no host: the same rows give the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    fingerprint: str  # of the plan of the reconstructions
    rows_sha256: str  # over the committed parts that it was made of
    bundle: str  # hash of the head whose vertices measure distances
    detail: bool
    identities: int
    faces: int  # with an identity
    unknown: int  # faces without: they keep their own codes
    file: StoredFile
