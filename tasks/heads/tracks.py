"""Tracking through videos: the faces of one subject over the frames, with shared codes and a smoothed motion.

A second pass over finished reconstructions, video by video. Faces of neighbouring frames are matched by overlap,
landmarks and shape code; a track shares one shape, albedo and detail code (the robust mean of `consensus.py`);
expression, pose, camera and light are smoothed with blinks kept (`deca_core/smoothing.py`). The rows of
reconstructions/ stay unchanged; tracks/ is stored beside them (`derived.py`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deca_core.assets import AssetBundle
from deca_core.codes import CODE_NAMES, Codes
from deca_core.flame import FLAME
from deca_core.smoothing import Eyelids, smooth_codes
from schemas.parquet import fixed_array, fixed_values, open_writer
from schemas.tracks import CURRENT, TRACKS_SCHEMA, TracksRecord, VideoConfig
from tasks.heads.consensus import robust_weights, shape_metric
from tasks.heads.derived import publish_file, publish_record, rows_digest
from tasks.heads.selection import codes_of, iter_heads
from tasks.heads.track_records import tracks_record, tracks_store
from tasks.sources.videos import frame_of
from tasks.store.storage import Store
from tasks.units.commits import read_parts
from tasks.units.plan import Plan, load_plan

OVERLAP = 0.3  # intersection over union of two boxes round landmarks, below it is another track
APART = 0.5  # of a face's size: mean distance of the landmarks, beyond it another track
OTHER_SHAPE = 4.0  # mm between shape codes of neighbouring frames: beyond, another subject after a cut
NUMBERS = re.compile(r"(\d+)")
COLUMNS = ("face_id", "source_uri", "identity_id", "landmarks", "crop_transform", "checkpoint")

Floats = NDArray[np.float64]


# --- identity assignment ----------------------------------------------------------------------------------------------


@dataclass
class _Track:
    """The last face of a live track."""

    number: int
    time: float
    landmarks: NDArray[np.float32]
    shape: Floats  # points of `shape_metric`
    identity: str | None


def follow(
    times: Floats,
    landmarks: NDArray[np.float32],
    shapes: Floats,
    identities: Sequence[str | None],
    max_gap: float,
) -> NDArray[np.int64]:
    """The track number (N,) of every face of one video, in the order of time; numbered by first appearance.

    times (N,) seconds, the same for faces of one frame; landmarks (N,68,2) source pixels; shapes (N,100) millimetres.
    Faces of a frame go to the tracks of the last `max_gap` seconds by minimum-cost assignment. Known identities take
    precedence over positions, and join tracks across gaps.
    """
    numbers = np.zeros(len(times), np.int64)
    live: list[_Track] = []
    known: dict[str, int] = {}
    count = 0
    for rows in np.split(np.arange(len(times)), np.flatnonzero(np.diff(times)) + 1):
        if not len(rows):
            continue
        live = [track for track in live if times[rows[0]] - track.time <= max_gap + 1e-9]
        taken = _assign(live, landmarks[rows], shapes[rows], [identities[row] for row in rows])
        for row, place in zip(rows, taken, strict=True):
            name = identities[row]
            number = live[place].number if place is not None else known.get(name or "", -1)
            if number < 0 or number in numbers[rows[0] : row]:  # an identity occurs once a frame
                number, count = count, count + 1
            if name is not None:
                known.setdefault(name, number)
            numbers[row] = number
            live = [track for track in live if track.number != number] if place is None else live
            face = _Track(number, float(times[row]), landmarks[row], shapes[row], name)
            if place is None:
                live.append(face)
            else:
                live[place] = face
    return numbers


def _assign(
    live: list[_Track], landmarks: NDArray[np.float32], shapes: Floats, identities: Sequence[str | None]
) -> list[int | None]:
    """For each face of a frame the index of its track in `live`; None: a new track."""
    from scipy.optimize import linear_sum_assignment

    taken: list[int | None] = [None] * len(landmarks)
    if not live:
        return taken
    never = 1e6
    costs = np.full((len(landmarks), len(live)), never)
    for row, (points, shape, name) in enumerate(zip(landmarks, shapes, identities, strict=True)):
        for column, track in enumerate(live):
            if name is not None and track.identity is not None and name != track.identity:
                continue
            moved = float(np.linalg.norm(points - track.landmarks, axis=1).mean()) / _size(track.landmarks)
            changed = float(np.linalg.norm(shape - track.shape))
            if moved <= APART and changed <= OTHER_SHAPE and _overlap(points, track.landmarks) >= OVERLAP:
                costs[row, column] = moved / APART + changed / OTHER_SHAPE
    for row, column in zip(*linear_sum_assignment(costs), strict=True):
        if costs[row, column] < never:
            taken[row] = int(column)
    return taken


def _size(points: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.prod(np.ptp(points, axis=0).clip(min=1e-6))))


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of the boxes round the points."""
    low, high = np.maximum(one.min(0), other.min(0)), np.minimum(one.max(0), other.max(0))
    both = float(np.prod((high - low).clip(min=0)))
    return both / (float(np.prod(np.ptp(one, axis=0)) + np.prod(np.ptp(other, axis=0))) - both + 1e-9)


# --- shared codes and smoothing ---------------------------------------------------------------------------------------


def share_track(codes: Codes, metric: Floats) -> Codes:
    """One track's codes (T) with one shape, albedo and detail: robust means over its frames."""
    import torch

    found = {}
    for name in ("shape", "tex", "detail"):
        values = getattr(codes, name).double().numpy()
        points = values @ metric if name == "shape" else values
        mean = (robust_weights(points[None])[0][:, None] * values).sum(0)
        found[name] = torch.from_numpy(np.tile(mean, (len(values), 1))).to(codes.exp)
    return codes.replace(**found)


def smooth_track(
    times: Floats, codes: Codes, transforms: Floats, lids: Eyelids, metric: Floats, config: VideoConfig
) -> Codes:
    """One track's codes as tracks/ stores them, shared and smoothed; gaps longer than max_gap_s split the smoothing."""
    codes = share_track(codes, metric)
    if not config.smooth_s:
        return codes
    breaks = [0, *(np.flatnonzero(np.diff(times) > config.max_gap_s + 1e-9) + 1), len(times)]
    pieces = (slice(int(first), int(last)) for first, last in pairwise(breaks))
    return Codes.cat(
        [smooth_codes(times[piece], codes[piece], transforms[piece], lids, config.smooth_s) for piece in pieces]
    )


# --- the frames of a dataset ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clips:
    """Maps rows to (video, frame): by source_uri, or by the folders of the plan's images."""

    fps: float | None
    numbers: dict[str, int] = field(default_factory=dict)  # frame number by image URI

    @staticmethod
    def of(plan: Plan, fps: float | None) -> _Clips:
        """fps: of folders of images; None where images are no frames."""
        if fps is None:
            return _Clips(None)
        folders = defaultdict(list)
        for unit in plan.iter_units():
            for item in unit.items:
                if frame_of(item.source_uri) is None:
                    folders[_folder(item.source_uri)].append(item.source_uri)
        numbers: dict[str, int] = {}
        for uris in folders.values():
            numbers |= {uri: number for number, uri in enumerate(sorted(set(uris), key=_natural))}
        return _Clips(fps, numbers)

    def place(self, source_uri: str) -> tuple[str, int, float] | None:
        """(video, frame, seconds) of a row; None for an image."""
        if (frame := frame_of(source_uri)) is not None:
            return frame.video, frame.number, frame.seconds
        if self.fps is None or source_uri not in self.numbers:
            return None
        return _folder(source_uri), self.numbers[source_uri], self.numbers[source_uri] / self.fps


def _folder(uri: str) -> str:
    """The folder or archive of an image."""
    return uri[: max(uri.rfind("/"), uri.rfind("#"))]


def _natural(uri: str) -> list[tuple[int, int | str]]:
    """A key that sorts frame-2 before frame-10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in NUMBERS.split(uri)]


def has_frames(dest: str, config: VideoConfig) -> bool:
    """Whether the reconstructions at `dest` hold frames: images with `fps` given, or a first row from a video."""
    if config.fps is not None:
        return True
    store = Store(dest)
    first = next((part for part in read_parts(load_plan(dest)) if part.rows), None)
    if first is None:
        return False
    uris = pq.read_table(pa.BufferReader(store.read(first.file)), columns=["source_uri"])["source_uri"]
    return frame_of(uris[0].as_py()) is not None


# --- making -----------------------------------------------------------------------------------------------


def make_tracks(dest: str, bundle: AssetBundle, config: VideoConfig) -> TracksRecord:
    """Make the tracks of the committed rows at `dest`; returns the stored record if it is of these rows.

    Memory holds the rows of videos with rows still to come, without maps. Raises HeadsError, PlanError.
    """
    plan, store = load_plan(dest), tracks_store(dest)
    same: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "rows_sha256": rows_digest(read_parts(plan)),
        "bundle": bundle.hash,
        "config": config,
    }
    previous = tracks_record(dest)
    if previous and all(getattr(previous, name) == value for name, value in same.items()):
        return previous
    lids, metric = Eyelids.of(FLAME(bundle)), shape_metric(bundle)
    metadata = {"fingerprint": plan.fingerprint, "weights.bundle": bundle.hash}
    videos = tracks = faces = 0
    with store.scratch(CURRENT) as path:
        with open_writer(TRACKS_SCHEMA, path, metadata) as writer:
            for video, rows in _videos(plan, config):
                own = list(_tracks_of(plan, video, rows, lids, metric, config))
                for table in own:
                    writer.write_table(table)
                videos, tracks, faces = videos + 1, tracks + len(own), faces + rows.num_rows
        file = publish_file(store, path, "frames")
    record = TracksRecord(**same, videos=videos, tracks=tracks, faces=faces, file=file)
    publish_record(store, CURRENT, record, file)
    return record


def _videos(plan: Plan, config: VideoConfig) -> Iterator[tuple[str, pa.Table]]:
    """(video, its rows with the columns frame and time, in their order), each once all its rows have been read."""
    clips = _Clips.of(plan, config.fps)
    left: Counter[str] = Counter()
    for table in iter_heads(plan.dest, columns=["source_uri"], batch=4096):
        left.update(place[0] for uri in table["source_uri"].to_pylist() if (place := clips.place(uri)))
    waiting: dict[str, list[pa.Table]] = defaultdict(list)
    for table in iter_heads(plan.dest, columns=[*COLUMNS, *CODE_NAMES], batch=1024):
        places = [clips.place(uri) for uri in table["source_uri"].to_pylist()]
        videos = np.array([place[0] if place else "" for place in places])
        for video in dict.fromkeys(name for name in videos.tolist() if name):
            rows = np.flatnonzero(videos == video)
            some = table.take(pa.array(rows))
            own = [place for row in rows if (place := places[row])]
            some = some.append_column("frame", pa.array([place[1] for place in own], pa.int64()))
            waiting[video].append(some.append_column("time", pa.array([place[2] for place in own], pa.float64())))
            left[video] -= len(rows)
            if not left[video]:
                yield video, pa.concat_tables(waiting.pop(video)).sort_by([("frame", "ascending")]).combine_chunks()


def _tracks_of(
    plan: Plan, video: str, rows: pa.Table, lids: Eyelids, metric: Floats, config: VideoConfig
) -> Iterator[pa.Table]:
    """The tracks of a video as rows of TRACKS_SCHEMA, in the order of appearance."""
    times = rows["time"].to_numpy()
    shapes = fixed_values(rows, "shape").astype(np.float64) @ metric
    numbers = follow(times, fixed_values(rows, "landmarks"), shapes, rows["identity_id"].to_pylist(), config.max_gap_s)
    root = f"{plan.record.root.rstrip('/')}/"
    mark = hashlib.sha256(video.removeprefix(root).encode()).hexdigest()[:16]
    for number in range(int(numbers.max(initial=-1)) + 1):
        own = rows.take(pa.array(np.flatnonzero(numbers == number)))
        when = own["time"].to_numpy().astype(np.float64)
        transforms = fixed_values(own, "crop_transform").astype(np.float64)
        codes = smooth_track(when, codes_of(own), transforms, lids, metric, config)
        values = {name: value.numpy() for name, value in codes.items()} | {"crop_transform": transforms}
        plain = {"track_id": [f"{mark}-{number:02d}"] * len(own), "video": [video] * len(own)}
        yield pa.table(
            [
                fixed_array(column, values[column.name].astype(np.float32))
                if column.name in values
                else pa.array(plain[column.name], column.type)
                if column.name in plain
                else own[column.name].cast(column.type)
                for column in TRACKS_SCHEMA
            ],
            schema=TRACKS_SCHEMA,
        )
