"""Read and verify tracks/; tasks/heads/tracks.py makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from deca_core.errors import DecaError
from schemas.tracks import CURRENT, TRACKS_FOLDER, TracksRecord
from tasks.heads.derived import rows_digest, verify_derived
from tasks.store.storage import Store
from tasks.units.commits import read_parts
from tasks.units.plan import load_plan
from tasks.units.verify import Verification


class TracksError(DecaError):
    """Tracks that are missing, or of other rows; says what to run."""


def tracks_store(dest: str) -> Store:
    """The store of DEST/tracks/."""
    return Store(Store(dest).join(TRACKS_FOLDER))


def tracks_record(dest: str) -> TracksRecord | None:
    """The record of the tracks at `dest`, also of earlier rows; None where there are none."""
    try:
        return TracksRecord.model_validate_json(tracks_store(dest).read(CURRENT))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise TracksError(
            f"{tracks_store(dest).join(CURRENT)} is damaged or of another version of the program. Delete it, then: "
            f"{_again(dest)}"
        ) from error


def read_tracks(dest: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The tracks of the current rows at `dest` (TRACKS_SCHEMA). Raises TracksError where there are none."""
    record = tracks_record(dest)
    if record is None:
        raise TracksError(f"{Store(dest).uri} has no tracks: its rows are no frames of a video")
    plan = load_plan(dest)
    if (record.fingerprint, record.rows_sha256) != (plan.fingerprint, rows_digest(read_parts(plan))):
        raise TracksError(
            f"{Store(dest).uri}: rows came or went after its tracks were made. Run: {_again(dest, record)}"
        )
    return _read(dest, record, columns)


def _read(dest: str, record: TracksRecord, columns: Sequence[str] | None) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(tracks_store(dest).read(record.file.file)), columns=columns)
    except FileNotFoundError as error:
        uri = tracks_store(dest).join(record.file.file)
        raise TracksError(f"{uri} is missing, or was just replaced. Run: {_again(dest, record)}") from error


def read_track(dest: str, track_id: str | None = None) -> pa.Table:
    """The rows of one track in the order of time; None: the track with most frames.

    Raises TracksError for an unknown track, naming known ones.
    """
    table = read_tracks(dest)
    counts = Counter(table["track_id"].to_pylist())
    wanted = track_id or max(counts, key=lambda name: (counts[name], name), default=None)
    if wanted not in counts:
        there = ", ".join(f"{name} ({count} frames)" for name, count in counts.most_common(5)) or "none"
        raise TracksError(f"{Store(dest).uri} has no track {wanted!r}; there are {there}")
    return table.filter(pc.equal(table["track_id"], wanted)).combine_chunks()


def verify_tracks(dest: str) -> Verification:
    """Hash the tracks; also a problem: they were made of other rows than those at `dest`."""
    record = tracks_record(dest)
    assert record is not None, "called only where there are some"
    return verify_derived(
        dest, TRACKS_FOLDER, CURRENT, record.file, record.faces, lambda: read_tracks(dest, ["track_id"])
    )


def _again(dest: str, record: TracksRecord | None = None) -> str:
    fps = f" --fps {record.config.fps:g}" if record and record.config.fps else ""
    return f"deca reconstruct SRC {Store(dest).uri} --resume{fps}"
