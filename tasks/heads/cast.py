"""Heads and motions of an animation, found by name and frozen with the plan.

A name is one of: a preset or an expression component of the bundle (motions only); HEADS#ID, a face, image, identity or
track of a reconstructions/ dataset; HEADS, its longest track or its only face; an image or a video, reconstructed here.
`identities` of the config is a whole dataset: all of its tracks, or all of its faces.

Both tables are stored in DEST/_cast/, so workers need no source and the same plan gives the same animations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deca_core.animation import PRESETS, Motion, eased, is_preset, preset
from deca_core.assets import AssetBundle
from deca_core.codes import CODE_NAMES, Codes
from deca_core.errors import DecaError
from schemas.animate import CAST_FOLDER, EXPRESSIONS_SCHEMA, IDENTITIES_SCHEMA, AnimateConfig
from schemas.parquet import fixed_array, fixed_values, open_writer
from schemas.reconstruct import ReconstructConfig
from tasks.heads.reconstruct import ReconstructWorker
from tasks.heads.selection import HeadsError, codes_of, heads_plan, iter_heads, read_heads
from tasks.heads.track_records import read_track, read_tracks, tracks_record
from tasks.heads.tracks import make_tracks
from tasks.models.loading import weights_hash
from tasks.sources.listings import is_list
from tasks.sources.tables import is_table
from tasks.sources.videos import is_video
from tasks.sources.walk import SourceError, is_file
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store, hash_file, normalise
from tasks.units.commits import standing_quarantine
from tasks.units.engine import run_units
from tasks.units.plan import PLAN
from tasks.units.rounds import open_or_build

TRACK = re.compile(r"[0-9a-f]{16}-\d{2,}")
GROUP = 256  # heads in a row group
NEUTRAL = Motion(np.zeros(1), np.zeros((1, 50), np.float32), np.zeros((1, 3), np.float32))


class CastError(DecaError):
    """A frozen head or motion without codes; says why."""


@dataclass(frozen=True, eq=False)
class CodeSequence:
    """Codes (T) of one subject at times (T,) in seconds; T is 1 for an image."""

    codes: Codes
    times: NDArray[np.float64]


@dataclass(frozen=True)
class CastTable:
    """A table of DEST/_cast/: its file below DEST, its SHA-256, and the names in it, in order."""

    file: str
    sha256: str
    names: list[str]

    def pinned(self) -> dict[str, Any]:
        """The table as the plan's config records it."""
        return {"file": self.file, "sha256": self.sha256, "count": len(self.names)}


# --- names to codes ---------------------------------------------------------------------------------------------------


def is_dataset(uri: str) -> bool:
    """Whether `uri` has a plan."""
    return not is_file(normalise(uri)) and Store(uri).exists(PLAN)


class Casting:
    """Resolves names to codes and motions on one model; the reconstruct worker is built when it is first needed."""

    def __init__(self, config: AnimateConfig, model: ReconstructConfig, bundle: AssetBundle) -> None:
        self.config, self.model, self.bundle = config, model, bundle
        self._worker: ReconstructWorker | None = None

    def worker(self) -> ReconstructWorker:
        """The worker that reconstructs images and frames."""
        if self._worker is None:
            self._worker = ReconstructWorker(self.model.model_copy(update={"outputs": ("codes",)}))
        return self._worker

    def head(self, name: str) -> Codes:
        """The codes (1) of a named head; those of the first frame for a track or video."""
        return self.sequence(name).codes[:1]

    def motion(self, name: str) -> Motion:
        """A named motion: a preset, the frames of a sequence, or for a single expression the way there and back."""
        components, rate = self.bundle.expression_names, self.config.fps
        if is_preset(name, components):
            return preset(name, components, rate)
        found = self.sequence(name)
        motion = Motion.of(found.codes, found.times)
        return motion if len(motion) > 1 else eased(motion, NEUTRAL, rate)

    def sequence(self, name: str) -> CodeSequence:
        """The codes of a name that is no preset. Raises HeadsError, ImageError, SourceError, TracksError."""
        uri, _, part = name.partition("#")
        place = normalise(uri)
        if is_dataset(place):
            return self._from_dataset(place, part, name)
        if is_file(place) and not is_list(place) and not is_table(place):
            return self._from_media(place, name)
        known = self.bundle.expression_names
        words = f", or an expression component: {', '.join(known)}" if known else ""
        raise SourceError(
            f"{name!r} is nothing that can be animated: no dataset of deca reconstruct, no image or video is there, "
            f"and no motion has the name ({', '.join(PRESETS)}{words})"
        )

    def dataset_heads(self, dest: str, where: str | None) -> Iterator[tuple[str, Codes]]:
        """(name, codes of 1) of all tracks of a dataset; of its faces where it has no tracks, or a filter is given."""
        self._check_bundle(dest)
        if where is None and tracks_record(dest) is not None:
            tracks = dict.fromkeys(read_tracks(dest)["track_id"].to_pylist())
            yield from ((f"{dest}#{track}", codes_of(read_track(dest, track).slice(0, 1))) for track in tracks)
            return
        for batch in iter_heads(dest, where=where, columns=["face_id", *CODE_NAMES]):
            codes = codes_of(batch)
            for row, face in enumerate(batch["face_id"].to_pylist()):
                yield f"{dest}#{face}", codes[row : row + 1]

    def _check_bundle(self, dest: str) -> None:
        planned = heads_plan(dest).record.weights["bundle"]
        if planned != self.bundle.hash:
            raise HeadsError(
                f"{dest}: made on the bundle {planned[:12]}, this is {self.bundle.hash[:12]}: codes do not carry over"
            )

    def _from_dataset(self, dest: str, part: str, name: str) -> CodeSequence:
        self._check_bundle(dest)
        if TRACK.fullmatch(part) or (not part and tracks_record(dest) is not None):
            return _track(dest, part or None)
        heads = read_heads(dest, [part] if part else None, columns=["face_id", *CODE_NAMES])
        if len(heads) > 1:
            some = ", ".join(heads.face_ids[:3])
            raise HeadsError(
                f"{name} is {len(heads)} faces; name one, as in {dest}#{heads.face_ids[0]} (there are {some})"
            )
        return CodeSequence(heads.codes, np.zeros(1))

    def _from_media(self, uri: str, name: str) -> CodeSequence:
        """The largest face of an image, or the longest track of a video, reconstructed in a temporary folder."""
        with temp_folder("cast") as own:
            folder = str(own)
            config = self.model.model_copy(update={"source": uri, "dest": folder, "outputs": ("codes",)})
            plan = open_or_build(
                folder,
                uri,
                config=config.plan_config(),
                weights={"bundle": self.bundle.hash, "checkpoint": weights_hash(config)},
                source_config=config.inputs,
            )
            if run_units(plan, self.worker, config.ray).rows == 0:
                reasons = "; ".join(dict.fromkeys(f"{row.stage}: {row.message}" for row in standing_quarantine(folder)))
                raise SourceError(f"{name}: no face ({reasons[:300]})")
            if is_video(uri):
                make_tracks(folder, self.bundle, config.video)
                return _track(folder, None)
            heads = read_heads(folder)  # in the detector's order, the largest face first
            return CodeSequence(heads.codes[:1], np.zeros(1))


def _track(dest: str, track: str | None) -> CodeSequence:
    table = read_track(dest, track)
    times = table["time"].to_numpy().astype(np.float64)
    return CodeSequence(codes_of(table), times - times[0])


# --- freezing ---------------------------------------------------------------------------------------------------------

Row = tuple[str, dict[str, NDArray]]  # name, arrays of T rows


def freeze_cast(config: AnimateConfig, model: ReconstructConfig, bundle: AssetBundle) -> tuple[CastTable, CastTable]:
    """Write the tables of heads and of motions to DEST/_cast, each named by its content's hash.

    Raises the first error of a name that gives no head or motion.
    """
    casting = Casting(config, model, bundle)
    return (
        _publish(config.dest, "identities", IDENTITIES_SCHEMA, _identity_rows(config, casting)),
        _publish(config.dest, "expressions", EXPRESSIONS_SCHEMA, _expression_rows(config, casting)),
    )


def _identity_rows(config: AnimateConfig, casting: Casting) -> Iterator[Row]:
    named = ((name, casting.head(name)) for name in config.identity)
    chosen = (
        casting.dataset_heads(normalise(config.identities), config.identities_where) if config.identities else iter(())
    )
    for name, codes in chain(named, chosen):
        yield name, {key: value.numpy() for key, value in codes.items()}


def _expression_rows(config: AnimateConfig, casting: Casting) -> Iterator[Row]:
    for name in config.expression:
        motion = casting.motion(name)
        yield name, {"time": motion.times, "exp": motion.exp, "jaw": motion.jaw}


def _publish(dest: str, kind: str, schema: pa.Schema, rows: Iterator[Row]) -> CastTable:
    """Write the rows as Parquet, a row group for each motion, or for GROUP heads; a name given twice counts once."""
    store, names, seen = Store(dest), list[str](), set[str]()
    waiting: list[pa.Table] = []
    with store.scratch(f"{CAST_FOLDER}/{kind}.parquet") as path:
        with open_writer(schema, path) as writer:
            for name, arrays in rows:
                if name in seen:
                    continue
                seen.add(name)
                count = len(arrays["exp"])
                plain = {"number": [len(names)] * count, "name": [name] * count, "error": [None] * count}
                columns = [
                    fixed_array(field, arrays[field.name])
                    if pa.types.is_fixed_size_list(field.type)
                    else pa.array(plain[field.name] if field.name in plain else arrays[field.name], field.type)
                    for field in schema
                ]
                names.append(name)
                waiting.append(pa.table(columns, schema=schema))
                if kind == "expressions" or len(waiting) == GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        digest = hash_file(path)[1]
        file = f"{CAST_FOLDER}/{kind}-{digest[:16]}.parquet"
        store.publish(path, file)
    return CastTable(file, digest, names)


class CastReader:
    """The frozen cast as workers read it: heads and motions by number; the last row group of heads is kept."""

    def __init__(self, dest: str, identities: str, expressions: str) -> None:
        store = Store(dest)
        self.heads = pq.ParquetFile(pa.BufferReader(store.read(identities)))
        self.motions = pq.ParquetFile(pa.BufferReader(store.read(expressions)))
        self._group: tuple[int, pa.Table] | None = None

    def head(self, number: int) -> tuple[str, Codes]:
        """(name, codes of one). Raises CastError where an earlier version froze a name without codes."""
        group, row = divmod(number, GROUP)
        if self._group is None or self._group[0] != group:
            self._group = (group, self.heads.read_row_group(group))
        own = self._group[1].slice(row, 1)
        return _named(own), codes_of(own)

    def motion(self, number: int) -> tuple[str, Motion]:
        """(name, motion). Raises CastError as `head` does."""
        table = self.motions.read_row_group(number)
        name = _named(table)
        exp, jaw = (fixed_values(table, column).copy() for column in ("exp", "jaw"))
        return name, Motion(table["time"].to_numpy(), exp, jaw)


def _named(rows: pa.Table) -> str:
    if (error := rows["error"][0].as_py()) is not None:
        raise CastError(error)
    return str(rows["name"][0].as_py())
