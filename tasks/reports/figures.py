"""Charts of a reconstructions/ dataset for its report: distributions of codes, and cost over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from deca_core.appearance import SH_CONSTANTS
from deca_core.codes import Codes
from deca_core.flame import rotation_matrix
from schemas.parquet import fixed_values
from tasks.draw.charts import bands, curves, histogram
from tasks.store.ranges import open_checked
from tasks.store.storage import storage_errors
from tasks.units.commits import commit_table, read_parts
from tasks.units.plan import Plan, PlanError

PARTS = 64  # whose codes are charted
MAP_GROUPS = 6  # row groups whose displacement maps are read: 8 MB each
BLOCK = 2**18  # bytes read ahead in a part
TIME_BINS = 40


@dataclass(frozen=True)
class Cost:
    """Cost of the committed units."""

    faces: int
    items: int
    seconds: float  # of workers, all together
    bytes: int  # parts and files beside them
    times: NDArray[np.float64]  # of the commits in seconds since the epoch, ascending; empty where storage tells none
    rows: NDArray[np.int64]  # faces of each of these commits

    @property
    def seconds_a_face(self) -> float:
        return self.seconds / max(self.faces, 1)

    @property
    def bytes_a_face(self) -> float:
        return self.bytes / max(self.faces, 1)

    @property
    def hours(self) -> float:
        """Return the hours from the first commit to the last."""
        return float(self.times[-1] - self.times[0]) / 3600 if len(self.times) > 1 else 0.0

    @property
    def duration(self) -> str:
        """The same in words."""
        seconds = self.hours * 3600
        for name, size in (("hours", 3600), ("minutes", 60)):
            if seconds > 2 * size:
                return f"{seconds / size:,.1f} {name}"
        return f"{seconds:.1f} seconds"


def read_ledger(plan: Plan) -> pa.Table:
    """Return a row per committed unit, sorted by unit."""
    return commit_table(plan, ["rows", "items", "seconds", "bytes", "files_bytes", "written"])


def cost_of(ledger: pa.Table) -> Cost:
    """The cost by the commit records."""
    timed = ledger.filter(ledger["written"].is_valid()).sort_by([("written", "ascending"), ("rows", "ascending")])
    total = {name: pc.sum(ledger[name]).as_py() or 0 for name in ledger.column_names}
    return Cost(
        faces=total["rows"],
        items=total["items"],
        seconds=total["seconds"],
        bytes=total["bytes"] + total["files_bytes"],
        times=timed["written"].to_numpy(),
        rows=timed["rows"].to_numpy(),
    )


def cost_charts(ledger: pa.Table, cost: Cost) -> Iterator[str]:
    """Return charts of faces and faces per second over time, and of worker seconds per face by unit."""
    if cost.hours > 0:
        minutes = (cost.times - cost.times[0]) / 60
        unit, size = ("hours", 60.0) if minutes[-1] > 180 else ("minutes", 1.0)
        done = np.cumsum(cost.rows)
        # The first commit is where the clock starts: what it holds was made before.
        yield curves({"": (minutes / size, done)}, f"{unit} since the first commit", "faces committed", small=True)
        counts, edges = np.histogram(minutes[1:], int(np.clip(len(minutes) // 4, 3, TIME_BINS)), weights=cost.rows[1:])
        rate = counts / np.maximum(np.diff(edges) * 60, 1e-9)
        x, y = np.repeat(edges, 2)[1:-1] / size, np.repeat(rate, 2)
        yield curves({"": (x, y)}, f"{unit} since the first commit", "faces a second", small=True)
    worked = ledger.filter(pc.greater(ledger["rows"], 0))
    if len(worked) > 1:
        each = worked["seconds"].to_numpy() / worked["rows"].to_numpy()
        yield curves({"": (np.arange(len(each)), each)}, "unit", "worker seconds a face", small=True)


# --- codes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Distribution charts, and the number of faces they are over."""

    charts: list[str]
    faces: int
    maps: int  # faces whose displacement was measured


def spread_of(plan: Plan) -> Spread:
    """Return distributions over evenly spaced parts: of scores, poses and code norms."""
    uris = [plan.store.join(part.file) for part in read_parts(plan) if part.rows]
    chosen = [uris[place] for place in _places(len(uris), PARTS)]
    if not chosen:
        return Spread([], 0, 0)
    table = pa.concat_tables([_read(uri) for uri in chosen])
    relief = _relief([uris[place] for place in _places(len(uris), MAP_GROUPS)])
    return Spread(list(_charts(table, relief)), table.num_rows, len(relief))


def _places(length: int, count: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, length - 1, min(length, count)).round()}) if length else []


def _read(uri: str) -> pa.Table:
    """The small columns of a part: scores, boxes, codes."""
    wanted = ("det_score", "bbox", *(name for name, _ in Codes.zeros().items()))
    try:
        with storage_errors("read", uri), open_checked(uri, None, BLOCK) as file:
            parquet = pq.ParquetFile(file)
            return parquet.read(columns=[name for name in wanted if name in parquet.schema_arrow.names])
    except FileNotFoundError as error:
        raise PlanError(f"{uri} is committed and missing. Run: deca verify {uri.rpartition('/')[0]}") from error


def _relief(uris: list[str]) -> NDArray[np.float64]:
    """RMS of the displacement of faces, micrometres: those of the first row group of each part; none in files."""
    found = [np.empty(0)]
    for uri in uris:
        with storage_errors("read", uri), open_checked(uri, None, BLOCK) as file:
            parquet = pq.ParquetFile(file)
            if "displacement" in parquet.schema_arrow.names and parquet.num_row_groups:
                maps = fixed_values(parquet.read_row_group(0, columns=["displacement"]), "displacement")
                found.append(1e6 * np.sqrt(np.square(maps, dtype=np.float64).mean((1, 2))))
    return np.concatenate(found)


def _charts(table: pa.Table, relief: NDArray[np.float64]) -> Iterator[str]:
    left, top, right, bottom = fixed_values(table, "bbox").T
    yield histogram(np.maximum(right - left, bottom - top), "size of the face, source pixels", log=True)
    yield histogram(table["det_score"].to_numpy(), "detection score")
    if "pose" not in table.column_names:
        return
    code = {name: fixed_values(table, name) for name, _ in Codes.zeros().items()}
    for name, degrees in angles(code["pose"]).items():
        yield histogram(degrees, name)
    for name, label in (("shape", "shape β"), ("exp", "expression ψ"), ("tex", "albedo α"), ("detail", "detail δ")):
        if np.abs(code[name]).max() > 0:
            yield histogram(np.sqrt(np.square(code[name]).mean(1)), f"{label}: root mean square of a face's code")
    yield histogram(code["light"][:, 0].mean(1) * SH_CONSTANTS[0], "light: mean of the constant band")
    yield histogram(code["cam"][:, 0], "camera: scale s")
    if len(relief) and relief.max() > 0:
        yield histogram(relief, "displacement: root mean square of a face, µm")
    for name, label in (("shape", "shape component"), ("exp", "expression component")):
        yield bands(code[name], label)


def angles(pose: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Return head and jaw rotations of pose codes (N,6) in degrees, by label.

    Yaw and pitch are where the face (z) looks; the jaw's angle is its turn about x.
    """
    rotation = rotation_matrix(torch.from_numpy(pose[:, :3].astype(np.float64))).numpy()
    looks, right = rotation[:, :, 2], rotation[:, :, 0]
    return {
        "yaw, degrees (positive: to its left)": np.degrees(np.arctan2(looks[:, 0], looks[:, 2])),
        "pitch, degrees (positive: upwards)": np.degrees(np.arcsin(looks[:, 1].clip(-1, 1))),
        "roll, degrees (positive: to its right)": np.degrees(np.arctan2(right[:, 1], right[:, 0])),
        "jaw, degrees (positive: open)": np.degrees(pose[:, 3].astype(np.float64)),
    }
