"""Moves rows to their shards: by Ray Data, or in this process through one spill file.

Either needs memory for one shard and some 200 MB, and disk (Ray's spilling, or the spill file) for all that moves. Both
read the same sources and write with the same function, so they give the same bytes. A row carries the number of
its shard and its place there; a shard is written only when it has every place exactly once.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.engine import RayConfig
from schemas.faces import DATA
from schemas.ledger import StoredFile
from schemas.parquet import ROW_GROUP, open_writer
from tasks.people.layout import ShardPlace
from tasks.people.versions import FacesError
from tasks.store.ranges import open_checked
from tasks.store.storage import StorageError, Store, hash_file, storage_errors
from tasks.units.ray_cluster import connect
from tasks.units.shared_paths import DEST, SharedPathError, paths_by_setting

READ_BLOCK = 8 * 2**20  # bytes fetched at once from a remote file: about three row groups
HELD = 64 * 2**20  # bytes of rows that wait in memory before they go to the spill file, sorted by shard
LITTLE = 2**30  # bytes: less is moved by this process before Ray's tasks are up, which takes them 20 s and more
SHUFFLED = 128 * 2**20  # bytes a task of Ray's shuffle takes; its default of 1 GiB wants a large object store
TASKS = 1000  # on either side of the shuffle, at most: Ray keeps an object for each pair of them
SOURCES_A_TASK = 4  # files that one reading task goes through
PLACING = ("shard", "order")  # columns that only travel
IDENTITY = ("identity_id", "identity_source")

# A row per source file: its requested rows, their target shards and their identities.
PICKUP_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("row", pa.large_list(pa.int64())),  # ascending
        ("shard", pa.large_list(pa.int64())),  # position in the list of shards to make
        ("order", pa.large_list(pa.int64())),  # row in that shard
        ("face_id", pa.large_list(pa.large_string())),
        ("identity_id", pa.large_list(pa.large_string())),
        ("identity_source", pa.large_list(pa.large_string())),
    ]
)


def make_pickups(
    faces: pa.Table, source: NDArray[np.int64], columns: dict[str, NDArray[np.int64]], uris: list[str]
) -> pa.Table:
    """Rows of PICKUP_SCHEMA, in the order of `uris`.

    faces: face_id, identity_id, identity_source of the wanted rows; source: of each, index into uris; columns: their
    row, shard and order.
    """
    sort = np.lexsort((columns["row"], source))
    values, starts = np.unique(source[sort], return_index=True)
    offsets = pa.array([*starts, len(sort)], pa.int64())
    arrays: dict[str, pa.Array] = {"uri": pa.array([uris[value] for value in values], pa.string())}
    for name, column in columns.items():
        arrays[name] = pa.LargeListArray.from_arrays(offsets, pa.array(column[sort]))
    ordered = faces.take(pa.array(sort))
    for name in ordered.column_names:
        strings = ordered[name].cast(pa.large_string()).combine_chunks()
        arrays[name] = pa.LargeListArray.from_arrays(offsets, strings)
    return pa.table([arrays[name] for name in PICKUP_SCHEMA.names], schema=PICKUP_SCHEMA)


def write_shards(
    store: Store, pickups: pa.Table, shards: list[ShardPlace], schema: pa.Schema, ray: RayConfig, size: int
) -> list[StoredFile]:
    """Publish the files of `shards`, in their order: by Ray unless it has no workers or there is little to move.

    schema: of the files, with all their metadata. size: of the rows, bytes, about.
    Raises StorageError, and FacesError where a source is not what its record says.
    """
    if ray.workers == 0 or size < LITTLE:
        return _write_here(store, pickups, shards, schema)
    return _write_by_ray(store, pickups, shards, schema, ray, size)


# --- reading and writing ----------------------------------------------------------------------------------------------


def travel_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of rows in transit: without the split, and with 64-bit offsets, for 2 GB are 50,000 crops."""
    wide = [pa.field(name, pa.int64(), nullable=False) for name in PLACING]
    for field in schema:
        if pa.types.is_struct(field.type):
            children = [child.with_type(pa.large_binary()) if child.name == "bytes" else child for child in field.type]
            wide.append(pa.field(field.name, pa.struct(children)))
        elif field.name != "split":
            wide.append(field)
    return pa.schema(wide)


def read_rows(pickups: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    """The wanted rows of the sources as tables of `travel_schema`, a row group at a time."""
    for number in range(len(pickups)):
        pickup = {name: pickups[name][number].values for name in PICKUP_SCHEMA.names if name != "uri"}
        yield from _read_source(pickups["uri"][number].as_py(), pickup, schema)


def _read_source(uri: str, pickup: dict[str, pa.Array], schema: pa.Schema) -> Iterator[pa.Table]:
    travel = travel_schema(schema)
    stored = [name for name in travel.names if name not in (*PLACING, *IDENTITY)]
    rows = pickup["row"].to_numpy()
    try:
        with storage_errors("read", uri), open_checked(uri, None, READ_BLOCK) as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            first = 0
            for group in range(parquet.num_row_groups):
                last = first + parquet.metadata.row_group(group).num_rows
                inside = slice(*np.searchsorted(rows, [first, last]).tolist())
                if inside.start < inside.stop:
                    table = parquet.read_row_group(group, columns=stored, use_threads=False)
                    table = table.take(pa.array(rows[inside] - first))
                    columns = {name: table[name] for name in stored}
                    columns |= {name: pickup[name][inside] for name in (*PLACING, *IDENTITY)}
                    if not table["face_id"].cast(pa.large_string()).combine_chunks().equals(pickup["face_id"][inside]):
                        raise StorageError(f"{uri} was changed while it was read. Run the same command again")
                    yield pa.table([columns[name] for name in travel.names], names=travel.names).cast(travel)
                first = last
    except FileNotFoundError as error:
        raise FacesError(f"{uri} is missing. Run the same command again; deca verify tells what else is") from error


def write_shard(store: Store, shard: ShardPlace, rows: pa.Table, schema: pa.Schema) -> StoredFile:
    """Publish one shard from its rows of `travel_schema` in any order. Equal rows give equal bytes, however chunked."""
    order = rows["order"].to_numpy()
    if not np.array_equal(np.sort(order), np.arange(shard.rows)):
        raise FacesError(f"shard {shard.split}-{shard.number:05d} got {len(order)} rows, not its {shard.rows}")
    at = np.argsort(order)
    rows = rows.drop_columns(list(PLACING)).combine_chunks()
    stem = f"{DATA}/{shard.split}-{shard.number:05d}"
    with store.scratch(f"{stem}.parquet") as path:
        with open_writer(schema, path) as writer:
            for first in range(0, shard.rows, ROW_GROUP):
                group = rows.take(pa.array(at[first : first + ROW_GROUP]))
                group = group.append_column("split", pa.array([shard.split] * len(group)))
                writer.write_table(group.select(schema.names).cast(schema), row_group_size=ROW_GROUP)
        size, sha256 = hash_file(path)
        name = f"{stem}-{sha256[:8]}.parquet"
        store.publish(path, name)
    return StoredFile(file=name, bytes=size, sha256=sha256)


# --- in this process --------------------------------------------------------------------------------------------------


class _Spill:
    """Rows on disk by shard: one file of Arrow streams, each the rows of one shard that were in memory together."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("wb")
        self.pieces: dict[int, list[tuple[int, int]]] = defaultdict(list)  # shard -> (offset, bytes)
        self.held: list[pa.Table] = []
        self.size = 0

    def add(self, table: pa.Table) -> None:
        self.held.append(table)
        self.size += table.nbytes
        if self.size >= HELD:
            self.flush()

    def flush(self) -> None:
        if not self.held:
            return
        table = pa.concat_tables(self.held).combine_chunks().sort_by("shard")
        shards, starts = np.unique(table["shard"].to_numpy(), return_index=True)
        for shard, first, last in zip(shards.tolist(), starts, [*starts[1:], len(table)], strict=True):
            piece = table.slice(first, last - first)
            offset = self.file.tell()
            with pa.ipc.new_stream(self.file, piece.schema) as stream:
                stream.write_table(piece)
            self.pieces[shard].append((offset, self.file.tell() - offset))
        self.held, self.size = [], 0

    def rows(self, shard: int) -> pa.Table:
        """Every row of a shard; after the last `flush`."""
        tables = []
        with self.path.open("rb") as file:
            for offset, size in self.pieces[shard]:
                file.seek(offset)
                tables.append(pa.ipc.open_stream(file.read(size)).read_all())
        return pa.concat_tables(tables)


def _write_here(store: Store, pickups: pa.Table, shards: list[ShardPlace], schema: pa.Schema) -> list[StoredFile]:
    with store.scratch(f"{DATA}/spill") as path:
        spill = _Spill(path)
        with spill.file:
            for table in read_rows(pickups, schema):
                spill.add(table)
            spill.flush()
        return [write_shard(store, shard, spill.rows(number), schema) for number, shard in enumerate(shards)]


# --- Ray Data ---------------------------------------------------------------------------------------------------------


def _write_by_ray(
    store: Store, pickups: pa.Table, shards: list[ShardPlace], schema: pa.Schema, config: RayConfig, size: int
) -> list[StoredFile]:
    """Read tasks, a hash shuffle by shard through Ray's object store (which spills to disk), a task that writes each.

    Ray may run a task twice: it then publishes the same bytes under the same name.
    """
    import ray
    from ray.data import DataContext
    from ray.data.context import ShuffleStrategy

    def read(pickups: pa.Table) -> Iterator[pa.Table]:
        yield from read_rows(pickups, schema)

    def write(rows: pa.Table) -> pa.Table:
        paths.check_here()
        number = rows["shard"][0].as_py()
        file = write_shard(store, shards[number], rows, schema)
        return pa.table({"shard": [number], "file": [file.model_dump_json()]})

    connect(config)
    context = DataContext.get_current().copy()
    context.shuffle_strategy = ShuffleStrategy.SHUFFLE_V2
    context.shuffle_compression = "none"  # crops do not compress
    context.shuffle_input_batch_bytes = max(SHUFFLED, size // TASKS)
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised below
    # Without a limit Ray runs a task that always kills its worker for ever.
    resources: dict[str, Any] = {"num_cpus": config.cpus_per_worker or 1.0, "max_retries": config.attempts - 1}
    steps = range(0, len(pickups), SOURCES_A_TASK)
    try:
        with (
            paths_by_setting({DEST: store.uri}, config.address) as paths,
            DataContext.current(context),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # max_retries has no other way in
            sources = ray.data.from_arrow([pickups.slice(first, SOURCES_A_TASK) for first in steps])
            rows = sources.map_batches(read, batch_size=None, batch_format="pyarrow", **resources)
            groups = rows.groupby("shard", num_partitions=min(len(shards), TASKS))
            written = groups.map_groups(write, batch_format="pyarrow", **resources).take_all()
    except ray.exceptions.RayError as error:
        raise _cause(error) from error
    files = {row["shard"]: StoredFile.model_validate_json(row["file"]) for row in written}
    return [files[number] for number in range(len(shards))]


def _cause(error: BaseException) -> Exception:
    """Return the error that a task raised; else Ray's own, with what to do."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (StorageError, FacesError, SharedPathError)):
            return type(cause)(str(cause))
        cause = getattr(cause, "cause", None) or cause.__cause__
    return FacesError(
        f"the shuffle failed: {type(error).__name__}: {str(error).splitlines()[-1]} Look at memory and disk (dmesg, df "
        "-h /tmp) and `ray logs`, then run the same command again; --set ray.workers=0 does without Ray"
    )
