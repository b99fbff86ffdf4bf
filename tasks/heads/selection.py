"""Select rows of a reconstructions/ dataset by id or filter, with their codes and the model that made them.

Every reader of reconstructions goes through here. Parts are found by commit records, never by a glob; the columns that
decide (ids, filter) are read first, then the requested columns of the selected rows.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from deca_core import DECA, Codes
from deca_core.assets import BundleError
from deca_core.checkpoint import CheckpointError
from deca_core.codes import CODE_NAMES
from deca_core.errors import DecaError
from schemas.ledger import Item
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.heads.filters import Filter, parse_filter
from tasks.models.loading import bundle_at, bundle_for, load_model, weights_hash
from tasks.store.ranges import open_checked
from tasks.store.storage import Store
from tasks.units.commits import Part, read_parts
from tasks.units.plan import CONFIG, Plan, load_plan
from tasks.units.snapshots import Listing, list_commits

IDS = ("face_id", "image_id", "identity_id")  # columns that ids are matched with
BATCH = 64  # rows of some 130 kB each with maps
BLOCK = 2**18  # bytes read ahead: the deciding columns are small beside the others
NEAR = 10_000  # ids compared with an unknown one, for a suggestion
UNIT = re.compile(r"/part-(\d+)-[0-9a-f]{8}\.parquet$")
ROW = "row in the part"  # name of a temporary column

logger = logging.getLogger("deca")


class HeadsError(DecaError):
    """Missing reconstructions: no such dataset, id, column or model, or a filter without matches."""


@dataclass(frozen=True)
class Heads:
    """Selected rows of the reconstructions at `dest`."""

    dest: str
    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def face_ids(self) -> list[str]:
        """The faces in the order of the rows."""
        return [str(value) for value in self.table["face_id"].to_pylist()]

    @property
    def codes(self) -> Codes:
        """Codes of all rows, in their order."""
        return codes_of(self.table)


@dataclass(frozen=True)
class Chosen:
    """Selected rows of one row group of a part: their positions in the part, and their columns."""

    part: Part
    rows: NDArray[np.int64]
    table: pa.Table


def read_heads(
    dest: str, ids: Sequence[str] | None = None, where: str | None = None, columns: Sequence[str] | None = None
) -> Heads:
    """The rows of a reconstructions/ dataset: those of `ids` in the order of the ids, else all, narrowed by `where`.

    ids: each a face_id, image_id or identity_id (then all rows of it). where: a filter, see `tasks/heads/filters.py`.
    columns: None reads all; face_id comes along in any case. For more rows than memory holds, `iter_heads`.
    Raises HeadsError, FilterError, PlanError, StorageError.

    >>> read_heads("heads/", where="det_score > 0.9", columns=["exp", "pose"]).codes  # doctest: +SKIP
    """
    ask = None if columns is None else list(dict.fromkeys(["face_id", *columns]))
    table = pa.concat_tables([chosen.table for chosen in iter_chosen(dest, ids, where, ask, with_ids=ids is not None)])
    if ids is not None:
        table = table.take(pa.array(_in_order(table, ids)))
        table = table.select([name for name in table.column_names if ask is None or name in ask])
    return Heads(Store(dest).uri, table.combine_chunks())


def iter_heads(
    dest: str,
    ids: Sequence[str] | None = None,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    batch: int = BATCH,
) -> Iterator[pa.Table]:
    """As `read_heads`, in tables of `batch` rows (the last one shorter) in the order of the dataset.

    Memory holds one row group and one batch. Missing ids raise HeadsError at the end.
    """
    waiting: pa.Table | None = None
    for chosen in iter_chosen(dest, ids, where, columns):
        waiting = chosen.table if waiting is None else pa.concat_tables([waiting, chosen.table])
        while waiting.num_rows >= batch:
            yield waiting.slice(0, batch).combine_chunks()
            waiting = waiting.slice(batch)
    if waiting is not None and waiting.num_rows:
        yield waiting.combine_chunks()


def iter_chosen(
    dest: str,
    ids: Sequence[str] | None = None,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    with_ids: bool = False,
) -> Iterator[Chosen]:
    """Selected rows with their positions, a row group at a time. with_ids: also read the columns of ids."""
    plan = heads_plan(dest)
    question = None if where is None else parse_filter(where)
    wanted = None if ids is None else pa.array(list(dict.fromkeys(ids)), pa.string())
    found: set[str] = set()
    rows = matched = 0
    for part in read_parts(plan):
        if not part.rows:
            continue
        with _open_part(plan, part.file) as parquet:
            names = parquet.schema_arrow.names
            ask = _columns(plan.dest, names, columns, question, with_ids)
            first = 0
            for group in range(parquet.num_row_groups):
                places = _places(parquet, group, wanted, question, found)
                if len(places):
                    table = parquet.read_row_group(group, columns=ask).take(pa.array(places))
                    yield Chosen(part, first + places, table)
                first += parquet.metadata.row_group(group).num_rows
                matched += len(places)
        rows += part.rows
    if missing := [] if wanted is None else [one for one in wanted.to_pylist() if one not in found]:
        raise HeadsError(_no_such_id(plan.dest, missing))
    if not rows:
        raise HeadsError(f"{plan.dest} holds no face. Run: deca status {plan.dest}")
    if not matched:
        of = " of the faces named" if ids is not None else ""
        raise HeadsError(f"{plan.dest}: none{of} of {rows} rows matches {where!r}. Loosen the filter, or leave it out")


def head_items(dest: str, ids: Sequence[str] | None = None, where: str | None = None) -> Iterator[Item]:
    """Selected rows as items of another plan, named by unit and face, with their position in the part.

    A rewritten part keeps its name and changes the etag, so that an extended plan recomputes its rows.
    """
    plan, index = heads_plan(dest), 0
    for chosen in iter_chosen(dest, ids, where, ["face_id"]):
        uri, etag = plan.store.join(plan.part_name(chosen.part.unit)), chosen.part.short
        faces = chosen.table["face_id"].to_pylist()
        for row, face in zip(chosen.rows.tolist(), faces, strict=True):
            yield Item(index, uri, f"head[{face}]", row, etag=etag, root=plan.dest)
            index += 1


def unit_of(item: Item) -> int:
    """The unit of the reconstructions that an item of `head_items` is a row of."""
    found = UNIT.search(item.uri)
    assert found is not None, f"{item.uri} is no part of a dataset"
    return int(found[1])


def read_head_items(
    plan: Plan, items: Sequence[Item], columns: Sequence[str]
) -> Iterator[tuple[Item, pa.Table | Exception]]:
    """(item, its row as a table, or the error that reading it raised) in the order of the items.

    plan: of the reconstructions; columns that the rows lack are left out.
    """
    parts = _parts(plan.dest, plan.fingerprint, list_commits(plan))
    for unit, run in groupby(items, unit_of):
        wanted = list(run)
        try:
            with _open_part(plan, _planned_part(parts.get(unit), wanted[0])) as parquet:
                ask = [name for name in columns if name in parquet.schema_arrow.names]
                sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
                ends = np.cumsum(sizes)
                groups = np.searchsorted(ends, np.array([item.offset for item in wanted]), side="right")
                for group, some in groupby(zip(groups.tolist(), wanted, strict=True), lambda pair: pair[0]):
                    table = parquet.read_row_group(group, columns=ask)
                    for _, item in some:
                        yield item, table.slice(int(item.offset or 0) - int(ends[group] - len(table)), 1)
        except (HeadsError, pa.ArrowException, OSError) as error:
            yield from [(item, error) for item in wanted]


def _planned_part(part: Part | None, item: Item) -> str:
    """Name of the part of a unit; HeadsError where it is not the one that the item was planned from."""
    again = "were the reconstructions recomputed? Run with --extend, or with --new"
    if part is None:
        raise HeadsError(f"{item.uri} is gone; {again}")
    if part.short != item.etag:
        raise HeadsError(f"{item.uri} has changed since it was planned; {again}")
    return part.file


@lru_cache(maxsize=2)
def _parts(dest: str, fingerprint: str, listing: Listing) -> dict[int, Part]:
    """The parts of reconstructions by unit, from all commit records.

    listing: the current commit records; part of the cache key, so that a changed record is read again.
    """
    return {part.unit: part for part in read_parts(load_plan(dest))}


def heads_plan(dest: str) -> Plan:
    """The plan of the reconstructions at `dest`. Raises HeadsError for another kind of dataset."""
    plan = load_plan(dest)
    flow = plan.record.config.get("flow")
    if flow != "reconstruct":
        raise HeadsError(
            f"{plan.dest} was written by the flow {flow!r} and holds no heads. Give a dataset of deca reconstruct"
        )
    return plan


def codes_of(table: pa.Table) -> Codes:
    """Codes of rows of reconstructions/. Raises HeadsError for a missing column."""
    if missing := [name for name in CODE_NAMES if name not in table.column_names]:
        raise HeadsError(f"rows without {', '.join(missing)} are no codes. Reconstruct with: --outputs codes")
    return Codes(**{name: torch.from_numpy(fixed_values(table, name).copy()) for name in CODE_NAMES})


def config_of(dest: str) -> ReconstructConfig:
    """The stored config of the reconstructions at `dest`."""
    store = Store(heads_plan(dest).dest)
    try:
        return ReconstructConfig.model_validate_json(store.read(CONFIG))
    except (FileNotFoundError, ValidationError) as error:
        raise HeadsError(
            f"{store.join(CONFIG)}: missing or of another version, so the model of these rows is unknown. "
            f"Run: deca reconstruct SRC {store.uri} --new"
        ) from error


def model_for(dest: str, checkpoint: str | None = None, bundle: str | None = None) -> DECA:
    """The model that the rows at `dest` were made with, in eval mode on the CPU.

    checkpoint, bundle: their current place, if they were moved (a checkpoint may carry its bundle). Raises HeadsError
    where a hash differs from the plan's, as codes fit one model only; StorageError.
    """
    record = heads_plan(dest).record
    try:
        places = {"checkpoint": checkpoint, "bundle": bundle_for(bundle, checkpoint)}
        given = {name: value for name, value in places.items() if value is not None}
        config = config_of(dest).model_copy(update=given)
        hashes = {"bundle": bundle_at(config.bundle).hash, "checkpoint": weights_hash(config)}
        for name, found in hashes.items():
            if found == record.weights[name]:
                continue
            is_embedded = name == "bundle" and config.bundle is None
            message = (
                f"the rows of {dest} were made with the {name} {record.weights[name][:12]}, this one is {found[:12]}"
            )
            if not is_embedded:
                raise HeadsError(f"{message}: their codes do not fit it. Give the one they were made with: --{name}")
            logger.warning("%s (the embedded head's last bits differ between processors)", message)
        return load_model(config)
    except BundleError as error:
        raise HeadsError(
            f"the bundle of {dest}: {error}. Give its current place with: --bundle, or with --checkpoint where that "
            "carries it"
        ) from error
    except CheckpointError as error:
        raise HeadsError(f"the checkpoint of {dest}: {error}. Give its current place with: --checkpoint") from error


# --- selecting --------------------------------------------------------------------------------------------------------


def _open_part(plan: Plan, part: str) -> pq.ParquetFile:
    uri = plan.store.join(part)
    try:
        return pq.ParquetFile(open_checked(uri, None, BLOCK))
    except FileNotFoundError as error:
        raise HeadsError(f"{uri} is committed and missing. Run: deca verify {plan.dest}") from error
    except pa.ArrowInvalid as error:
        raise HeadsError(f"{uri} is damaged ({error}). Run: deca verify {plan.dest}") from error


def _columns(
    dest: str, names: list[str], columns: Sequence[str] | None, question: Filter | None, with_ids: bool
) -> list[str] | None:
    """The columns to read; HeadsError where the dataset lacks one that was asked for."""
    asked = [*(columns or ()), *(question.columns if question else ())]
    if missing := [name for name in asked if name not in names]:
        raise HeadsError(
            f"{dest} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}. What `--outputs` of "
            "deca reconstruct named when it was made is there"
        )
    if columns is None:
        return None
    return list(dict.fromkeys([*columns, *(IDS if with_ids else ())]))


def _places(
    parquet: pq.ParquetFile, group: int, wanted: pa.Array | None, question: Filter | None, found: set[str]
) -> NDArray[np.int64]:
    """Positions of the selected rows of a row group; adds the ids that occur to `found`."""
    size = parquet.metadata.row_group(group).num_rows
    deciding = [*(IDS if wanted is not None else ()), *(question.columns if question else ())]
    if not deciding:
        return np.arange(size)
    table = parquet.read_row_group(group, columns=list(dict.fromkeys(deciding)))
    table = table.append_column(ROW, pa.array(np.arange(size)))
    if wanted is not None:
        hits = [pc.fill_null(pc.is_in(table[name], wanted), False) for name in IDS]
        for name, hit in zip(IDS, hits, strict=True):
            found.update(table[name].filter(hit).to_pylist())
        table = table.filter(pc.or_(pc.or_(hits[0], hits[1]), hits[2]))
    if question is not None:
        try:
            table = table.filter(question.expression)
        except pa.ArrowException as error:
            kinds = ", ".join(f"{name} is {table.schema.field(name).type}" for name in question.columns)
            raise HeadsError(f"the filter {question.text!r} does not fit the columns ({kinds}): {error}") from error
    return np.asarray(table[ROW].to_numpy())


def _in_order(table: pa.Table, ids: Sequence[str]) -> list[int]:
    """Rows by the first of `ids` that names them; rows of one id keep the dataset's order."""
    rank = {one: place for place, one in reversed(list(enumerate(ids)))}
    names = zip(*(table[name].to_pylist() for name in IDS), strict=True)
    best = [min(rank[one] for one in own if one in rank) for own in names]
    return [int(row) for row in np.argsort(best, kind="stable")]


def _no_such_id(dest: str, missing: list[str]) -> str:
    """Message for unknown ids, with the closest known one, or some that exist."""
    tables = iter_chosen(dest, columns=IDS)
    values = chain.from_iterable(chosen.table[name].to_pylist() for chosen in tables for name in IDS)
    known = list(dict.fromkeys(islice((value for value in values if value is not None), NEAR)))
    near = difflib.get_close_matches(missing[0], known, n=1, cutoff=0.7)
    hint = f"Did you mean {near[0]}?" if near else f"There are, for example, {', '.join(known[:3])}"
    more = f" (nor {len(missing) - 1} more of those asked for)" if len(missing) > 1 else ""
    return f"{dest} has no face, image or identity {missing[0]!r}{more}. {hint}" if known else f"{dest} holds no face"
