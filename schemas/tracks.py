"""The tracks/ dataset beside reconstructions/ of videos: one row a face of a frame, sorted by track and time.

tracks/_current.json            TracksRecord: the current file, the rows that it was made of, and how
tracks/frames-<sha8>.parquet    rows of TRACKS_SCHEMA; a row group holds rows of one track only
"""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from schemas.ledger import StoredFile
from schemas.parquet import fixed_field

SCHEMA_VERSION = 1
TRACKS_FOLDER, CURRENT = "tracks", "_current.json"

TRACKS_SCHEMA = pa.schema(
    [
        pa.field("track_id", pa.string(), nullable=False),  # <16 hex digits of the video>-<number in the video>
        pa.field("video", pa.string(), nullable=False),  # its URI, or the folder of the frames
        pa.field("frame", pa.int64(), nullable=False),  # number in the video, from 0
        pa.field("time", pa.float64(), nullable=False),  # seconds since the video's first frame
        pa.field("face_id", pa.string(), nullable=False),  # the row of reconstructions/ that it was made of
        pa.field("identity_id", pa.string()),
        fixed_field("shape", (100,)),  # the same in all rows of a track, as are tex and detail
        fixed_field("tex", (50,)),
        fixed_field("exp", (50,)),  # smoothed, as are pose, cam and light
        fixed_field("pose", (6,)),
        fixed_field("cam", (3,)),  # in the frame of crop_transform
        fixed_field("light", (9, 3)),
        fixed_field("detail", (128,)),
        fixed_field("crop_transform", (2, 3)),
        pa.field("checkpoint", pa.string(), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION), "dataset": "tracks"},
)


class VideoConfig(BaseModel):
    """Settings of DEST/tracks, which is made after the rows where they are frames of videos."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Frame rate of images in folders: each folder is a clip, its frames in the order of their names, numbers in them
    # read as numbers. Default None: images are not frames. A video file has its own times.
    fps: float | None = Field(default=None, gt=0)
    # Track subjects and smooth their codes. Default True where there are frames.
    tracks: bool = True
    # Seconds of the window in which codes are smoothed; 0 leaves each frame's own. Default: a third of the jitter is
    # left, and all of a talking mouth (docs/animate.md). WINDOW of deca_core/smoothing.py, which needs torch.
    smooth_s: float = Field(default=0.36, ge=0)
    # Seconds that a face may be away before its return is a new track. Default: a head turned aside, not a cut.
    max_gap_s: float = Field(default=0.5, ge=0)


class TracksRecord(BaseModel):
    """`tracks/_current.json`. Contains no time and no host: the same rows give the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    fingerprint: str  # of the plan of the reconstructions
    rows_sha256: str  # over the committed parts that it was made of
    bundle: str  # hash of the head whose vertices and lids are measured
    config: VideoConfig
    videos: int
    tracks: int
    faces: int  # rows of frames; rows of images are in no track
    file: StoredFile
