"""The annotations/ and faces/ datasets: one row a face, with its crop, labels and identity; and versions of faces/.

annotations/ follows the unit protocol (one part a unit). faces/ is what training reads: the same rows sorted by
identity, in shards that one version record names. Files of faces/ are named by their content and never change, so a new
version shares the shards that did not change with the old one:

    faces/_current.json               the current version; replaced in one write
    faces/versions/000001.json        FacesVersion: the files of this version, and nothing else is data
    faces/data/train-00000-<sha8>.parquet, val-...    rows of FACES, whole identities
    faces/index/identities-<sha8>.parquet             file and rows of each identity (IDENTITIES_SCHEMA)
    faces/index/assignments-<sha8>.parquet            identity of every annotated face, kept or not (ASSIGNMENTS_SCHEMA)
"""

from __future__ import annotations

import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from schemas.ledger import StoredFile
from schemas.parquet import fixed_field

SCHEMA_VERSION = 1
CROP_SIZE = 320  # pixels on a side of the stored crop
CROP_SCALE = 2.0  # side of the crop over the size of the face: room for every crop of training (up to 1.8) and a shift

ANNOTATIONS_FOLDER, FACES_FOLDER = "annotations", "faces"
CURRENT, VERSIONS, DATA, INDEX = "_current.json", "versions", "data", "index"

Split = Literal["train", "val"]
IdentitySource = Literal["label", "cluster", "none"]

# An image as Hugging Face `datasets` stores it: nullable, with the fields in this order.
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
QUALITY = ("sharpness", "yaw", "pitch", "eye_distance", "mask_coverage")


def annotations_schema(embedding: int) -> pa.Schema:
    """Arrow schema of annotations/. embedding: length of the identity descriptor (dlib 128, ArcFace 512)."""
    return image_schema("annotations", _face_fields(embedding))


def faces_schema(embedding: int) -> pa.Schema:
    """Arrow schema of faces/: the annotations, and identity and split of each face."""
    identity = [
        pa.field("identity_id", pa.string(), nullable=False),
        pa.field("identity_source", pa.string(), nullable=False),  # IdentitySource
        pa.field("split", pa.string(), nullable=False),  # Split
    ]
    return image_schema("faces", [*_face_fields(embedding), *identity])


def _face_fields(embedding: int) -> list[pa.Field]:
    return [
        pa.field("face_id", pa.string(), nullable=False),  # <image_id>-<face_index, 2 digits>
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),  # largest face of the image first
        pa.field("width", pa.int32(), nullable=False),  # of the upright source image, pixels
        pa.field("height", pa.int32(), nullable=False),
        fixed_field("bbox", (4,)),  # left, top, right, bottom, source pixels
        pa.field("det_score", pa.float32(), nullable=False),
        fixed_field("landmarks", (68, 2)),  # source pixels
        pa.field("crop", IMAGE),  # JPEG, CROP_SIZE square
        fixed_field("crop_transform", (2, 3)),  # source pixels to pixels of this crop
        pa.field("skin_mask", IMAGE),  # PNG, one channel, 255 skin, in the crop's pixels
        fixed_field("embedding", (embedding,)),
        pa.field("label", pa.string()),  # identity that a sidecar file gives
        pa.field("sharpness", pa.float32(), nullable=False),  # variance of the Laplacian of the face's grey values
        pa.field("yaw", pa.float32(), nullable=False),  # degrees, estimated from the landmarks; positive: to its left
        pa.field("pitch", pa.float32(), nullable=False),  # degrees, estimated; positive: upwards
        pa.field("eye_distance", pa.float32(), nullable=False),  # between the eyes' centres, source pixels
        pa.field("mask_coverage", pa.float32(), nullable=False),  # skin inside the landmarks' outline, 0 to 1
    ]


def image_schema(dataset: str, fields: list[pa.Field], version: int = SCHEMA_VERSION) -> pa.Schema:
    """Return the schema of a dataset, with its version and the features for Hugging Face `datasets`."""
    features = {field.name: _feature(field.type) for field in fields}
    huggingface = json.dumps({"info": {"features": features}}, sort_keys=True)
    metadata = {"schema_version": str(version), "dataset": dataset, "huggingface": huggingface}
    return pa.schema(fields, metadata=metadata)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Return the `datasets` feature of a column of this type. It needs the features of all columns or of none."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):  # "List" since datasets 4, which still reads the older name
        return {"_type": "Sequence", "feature": _feature(kind.value_type), "length": kind.list_size}
    return {"_type": "Value", "dtype": {"float": "float32"}.get(str(kind), str(kind))}


# Sorted by shard, then row.
IDENTITIES_SCHEMA = pa.schema(
    [
        pa.field("identity_id", pa.string(), nullable=False),
        pa.field("identity_source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # name of the file below faces/
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "identities"},
)

# Sorted by face_id. A later run keeps identities by it; it also says why a face is not in faces/.
ASSIGNMENTS_SCHEMA = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("identity_id", pa.string()),
        pa.field("identity_source", pa.string(), nullable=False),
        pa.field("left_out", pa.string()),  # the filter or rule that keeps it out of faces/; null: it is in
        pa.field(
            "descriptor", pa.int64()
        ),  # hash of the embedding that was clustered (tasks/people/group.py); null: none
    ],
    metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "assignments"},
)


class ShardFile(StoredFile):
    """One Parquet file of a version."""

    split: Split
    rows: int
    identities: int
    rows_sha256: str  # over what decides its bytes, known before a crop is read (tasks/people/layout.py)


class FacesVersion(BaseModel):
    """`versions/000001.json`. Contains no time and no host: the same faces and settings give the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    version: int  # from 1
    fingerprint: str  # over every other field but `version`
    annotations: str  # fingerprint of the annotations' plan
    config: dict[str, Any]  # settings of filters, identity and shards
    weights: dict[str, str]  # name -> hash of the annotators' models
    shards: list[ShardFile]
    identities_file: StoredFile
    assignments_file: StoredFile
    faces: int
    identities: int
    left_out: dict[str, int]  # faces of annotations/ that are not in faces/, by reason
