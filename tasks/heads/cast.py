"""Who is animated and how they move, from what a person names: rows, pictures, videos, codes, presets.

A name (spec) is one of: a preset or an expression component of the bundle; HEADS#ID, a face, image or identity of a
reconstructions/ dataset, or one of its tracks; HEADS alone, its longest track or its only face; a picture or a video,
reconstructed here; a .npz or .json of codes. In tables, a dataset stands for all that it holds.

What was found is frozen beside the plan (`_cast/`), so that workers need no source, and the same plan gives the same
animations. In a table a name that gives nothing keeps its place with the reason: its animations end in quarantine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deca_core.animation import PRESETS, Motion, MotionError, eased, is_preset, preset
from deca_core.assets import AssetBundle
from deca_core.codes import Codes
from deca_core.errors import DecaError
from schemas.animate import CAST_FOLDER, EXPRESSIONS_SCHEMA, IDENTITIES_SCHEMA, AnimateConfig
from schemas.parquet import fixed_array, fixed_values, open_writer
from schemas.reconstruct import ReconstructConfig
from tasks.heads.code_lists import is_code_list, read_codes
from tasks.heads.reconstruct import ReconstructWorker
from tasks.heads.selection import CODES, HeadsError, codes_of, heads_plan, iter_heads, read_heads
from tasks.heads.track_records import TracksError, read_track, read_tracks, tracks_record
from tasks.heads.tracks import make_tracks
from tasks.models.loading import weights_hash
from tasks.sources.images import ImageError
from tasks.sources.listings import is_list, listed_specs
from tasks.sources.tables import is_table
from tasks.sources.videos import is_video
from tasks.sources.walk import SourceError, is_file
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store, hash_file, normalise
from tasks.units.commits import standing_quarantine
from tasks.units.draft import code_version
from tasks.units.engine import run_units
from tasks.units.plan import PLAN
from tasks.units.rounds import open_or_build

TRACK = re.compile(r"[0-9a-f]{16}-\d{2,}")
GROUP = 256  # heads in a row group
STILL = Motion(np.zeros(1), np.zeros((1, 50), np.float32), np.zeros((1, 3), np.float32))
# What may be wrong with one name of a table without ending the others.
SPEC_ERRORS = (HeadsError, ImageError, MotionError, SourceError, TracksError)


class CastError(DecaError):
    """A head or motion that cannot be had; says which name, why, and what to do."""


@dataclass(frozen=True, eq=False)
class Take:
    """What a name gives: codes (T) at times (T,) seconds; one picture's where T is 1."""

    name: str
    codes: Codes
    times: NDArray[np.float64]


@dataclass(frozen=True)
class Cast:
    """The frozen cast of a plan: its two files below the dataset, with their hashes, and how many each holds."""

    identities: str
    expressions: str
    hashes: tuple[str, str]
    counts: tuple[int, int]
    names: tuple[list[str], list[str]]


# --- names to codes ---------------------------------------------------------------------------------------------------


def is_dataset(uri: str) -> bool:
    """Whether a plan lies there."""
    return not is_file(normalise(uri)) and Store(uri).exists(PLAN)


class Casting:
    """Finds what names give, on one model; what finds faces in pictures is made once, when the first one is named."""

    def __init__(self, config: AnimateConfig, model: ReconstructConfig, bundle: AssetBundle) -> None:
        self.config, self.model, self.bundle = config, model, bundle
        self._worker: ReconstructWorker | None = None

    def worker(self) -> ReconstructWorker:
        """What reconstructs pictures and frames."""
        if self._worker is None:
            self._worker = ReconstructWorker(self.model.model_copy(update={"outputs": ("codes",)}))
        return self._worker

    def motion(self, spec: str) -> Motion:
        """The motion that one name gives. Raises one of SPEC_ERRORS."""
        names = self.bundle.expression_names
        if is_preset(spec, names):
            return preset(spec, names, self.config.fps)
        return as_motion(take(spec, self), self.config.stills, self.config.fps)


def take(spec: str, casting: Casting) -> Take:
    """The codes that one name gives. Raises one of SPEC_ERRORS."""
    bundle = casting.bundle
    uri, _, part = spec.partition("#")
    place = normalise(uri)
    if is_code_list(place):
        codes, times = read_codes(place, bundle, casting.config.fps)
        return Take(spec, codes, times)
    if is_dataset(place):
        return _of_dataset(place, part, spec, bundle)
    if is_file(place) and not is_list(place) and not is_table(place):
        return _of_media(place, spec, casting)
    words = f", or an expression component: {', '.join(bundle.expression_names)}" if bundle.expression_names else ""
    raise SourceError(
        f"{spec!r} is nothing that can be animated: no dataset of deca reconstruct, no picture, video, .npz or .json "
        f"of codes is there, and no motion has the name ({', '.join(PRESETS)}{words})"
    )


def _of_dataset(dest: str, part: str, spec: str, bundle: AssetBundle) -> Take:
    """A face or track of a reconstructions/ dataset."""
    planned = heads_plan(dest).record.weights["bundle"]
    if planned != bundle.hash:
        raise HeadsError(
            f"{spec}: made on the bundle {planned[:12]}, this is {bundle.hash[:12]}: codes do not carry over"
        )
    if TRACK.fullmatch(part) or (not part and tracks_record(dest) is not None):
        return _track(read_track(dest, part or None), spec)
    heads = read_heads(
        dest, [part] if part else None, columns=["face_id", *(name for name, _ in Codes.zeros().items())]
    )
    if len(heads) > 1:
        some = ", ".join(heads.face_ids[:3])
        raise HeadsError(f"{spec} is {len(heads)} faces; name one, as in {dest}#{heads.face_ids[0]} (there are {some})")
    return Take(spec, heads.codes, np.zeros(1))


def _track(table: pa.Table, name: str) -> Take:
    times = table["time"].to_numpy().astype(np.float64)
    return Take(name, codes_of(table), times - times[0])


def _of_media(uri: str, spec: str, casting: Casting) -> Take:
    """The largest face of a picture, or the longest track of a video, reconstructed here and now."""
    with temp_folder("cast") as own:
        folder = str(own)
        config = casting.model.model_copy(update={"source": uri, "dest": folder, "outputs": ("codes",)})
        plan = open_or_build(
            folder,
            uri,
            config=config.plan_config(),
            weights={"bundle": casting.bundle.hash, "checkpoint": weights_hash(config)},
            source_config=config.inputs,
            code=code_version(ReconstructWorker.__module__),
        )
        if run_units(plan, casting.worker, config.ray).rows == 0:
            reasons = "; ".join(dict.fromkeys(f"{row.stage}: {row.message}" for row in standing_quarantine(folder)))
            raise SourceError(f"{spec}: no face ({reasons[:300]})")
        if is_video(uri):
            make_tracks(folder, casting.bundle, config.video)
            return _track(read_track(folder), spec)
        heads = read_heads(folder)  # faces lie in the detector's order, the largest first
        return Take(spec, heads.codes[:1], np.zeros(1))


# --- roles ------------------------------------------------------------------------------------------------------------


def as_identity(found: Take) -> Codes:
    """A head (1): of several frames what they share, as the first frame has it."""
    if not found.codes.cam[0, 0]:  # codes without a camera: as it would stand in a crop of its own
        raise SourceError(f"{found.name}: these codes say nothing of a person (no cam); they can only move somebody")
    return found.codes[:1]


def as_motion(found: Take, stills: str, rate: float) -> Motion:
    """How a head moves: the frames' expressions, or for a single one the way there and back."""
    motion = Motion.of(found.codes, found.times)
    if len(motion) > 1 or stills == "frame":
        return motion
    return eased(motion, STILL, rate)


# --- tables -----------------------------------------------------------------------------------------------------------


def _table_takes(
    table: str, where: str | None, casting: Casting, motions: bool
) -> Iterator[tuple[str, Take | Motion | Exception]]:
    """(name, what it gives or why nothing) of everything that a table holds."""
    place = normalise(table)
    if is_dataset(place):
        yield from _dataset_takes(place, where, casting.bundle)
        return
    if where is not None:
        raise CastError(f"{place} is a list, and a filter needs a dataset of deca reconstruct")
    for spec in listed_specs(place, "expression" if motions else "identity"):
        try:
            yield spec, casting.motion(spec) if motions else take(spec, casting)
        except SPEC_ERRORS as error:
            yield spec, error


def _dataset_takes(dest: str, where: str | None, bundle: AssetBundle) -> Iterator[tuple[str, Take]]:
    if heads_plan(dest).record.weights["bundle"] != bundle.hash:
        raise CastError(f"{dest} was made on another bundle: its codes do not carry over")
    if where is None and tracks_record(dest) is not None:
        table = read_tracks(dest)
        for name in dict.fromkeys(table["track_id"].to_pylist()):
            yield f"{dest}#{name}", _track(read_track(dest, name), f"{dest}#{name}")
        return
    for batch in iter_heads(dest, where=where, columns=["face_id", *CODES]):
        codes = codes_of(batch)
        for row, face in enumerate(batch["face_id"].to_pylist()):
            yield f"{dest}#{face}", Take(f"{dest}#{face}", codes[row : row + 1], np.zeros(1))


# --- freezing ---------------------------------------------------------------------------------------------------------


def freeze_cast(config: AnimateConfig, model: ReconstructConfig, bundle: AssetBundle) -> Cast:
    """Find every head and motion and write both tables to DEST/_cast, under names of their content.

    Raises CastError where a name on the command line gives nothing, or all names of a table.
    """
    casting = Casting(config, model, bundle)
    identities = _publish(config.dest, "identities", IDENTITIES_SCHEMA, _identity_rows(config, casting))
    expressions = _publish(config.dest, "expressions", EXPRESSIONS_SCHEMA, _expression_rows(config, casting))
    return Cast(
        identities[0],
        expressions[0],
        (identities[1], expressions[1]),
        (len(identities[2]), len(expressions[2])),
        (identities[2], expressions[2]),
    )


Row = tuple[str, str | None, dict[str, NDArray]]  # name, error, arrays of T rows


def _identity_rows(config: AnimateConfig, casting: Casting) -> Iterator[Row]:
    nobody = {name: value.numpy() for name, value in Codes.zeros().items()}

    def row(name: str, found: Take | Motion | Exception) -> Row:
        try:
            if isinstance(found, Exception):
                raise found
            assert isinstance(found, Take)
            return name, None, {key: value.numpy() for key, value in as_identity(found).items()}
        except SPEC_ERRORS as error:
            return name, str(error), nobody

    for spec in config.identity:
        yield _must(row(spec, _tried(take, spec, casting)))
    if config.identities:
        found = _table_takes(config.identities, config.identities_where, casting, motions=False)
        yield from _some((row(*pair) for pair in found), config.identities)


def _expression_rows(config: AnimateConfig, casting: Casting) -> Iterator[Row]:
    def row(name: str, found: Take | Motion | Exception) -> Row:
        try:
            if isinstance(found, Exception):
                raise found
            motion = found if isinstance(found, Motion) else as_motion(found, config.stills, config.fps)
            return name, None, _columns(motion)
        except SPEC_ERRORS as error:
            return name, str(error), _columns(STILL)

    for spec in config.expression:
        yield _must(row(spec, _tried(casting.motion, spec)))
    if config.expressions:
        found = _table_takes(config.expressions, config.expressions_where, casting, motions=True)
        yield from _some((row(*pair) for pair in found), config.expressions)


def _columns(motion: Motion) -> dict[str, NDArray]:
    return {"time": motion.times, "exp": motion.exp, "jaw": motion.jaw}


def _tried(work: Callable[..., Take | Motion], *arguments: Any) -> Take | Motion | Exception:
    try:
        return work(*arguments)
    except SPEC_ERRORS as error:
        return error


def _must(row: Row) -> Row:
    """A row of a name on the command line: somebody waits for it, so its error is the command's."""
    if row[1] is not None:
        raise CastError(row[1])
    return row


def _some(rows: Iterator[Row], table: str) -> Iterator[Row]:
    """Rows of a table of which at least one must give something."""
    good, last = False, ""
    for row in rows:
        good, last = good or row[1] is None, row[1] or last
        yield row
    if not good:
        raise CastError(f"nothing in {table} can be animated; the last reason: {last or 'it is empty'}")


def _publish(dest: str, kind: str, schema: pa.Schema, rows: Iterator[Row]) -> tuple[str, str, list[str]]:
    """(file, hash, names): the rows as Parquet, one row group a motion, or GROUP heads."""
    store, names, seen = Store(dest), list[str](), set[str]()
    waiting: list[pa.Table] = []
    with store.scratch(f"{CAST_FOLDER}/{kind}.parquet") as path:
        with open_writer(schema, path) as writer:
            for name, error, arrays in rows:
                if name in seen:  # named twice
                    continue
                seen.add(name)
                count = len(arrays["exp"])
                plain = {"number": [len(names)] * count, "name": [name] * count, "error": [error] * count}
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
    return file, digest, names


class Players:
    """The frozen cast as workers read it: heads and motions by number, those read last kept."""

    def __init__(self, dest: str, identities: str, expressions: str) -> None:
        store = Store(dest)
        self.heads = pq.ParquetFile(pa.BufferReader(store.read(identities)))
        self.motions = pq.ParquetFile(pa.BufferReader(store.read(expressions)))
        self._group: tuple[int, pa.Table] | None = None

    def head(self, number: int) -> tuple[str, Codes]:
        """(name, codes of one). Raises CastError with the reason why the name gives nobody."""
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
