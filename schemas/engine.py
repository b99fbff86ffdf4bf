"""Settings of the unit engine: where images come from, how they are cut into units, what runs them."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

UNITS_PER_WORKER = 4
# The first default of `extensions`. Plans of the default still store it, so that a longer default is not another plan.
FIRST_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
CP437 = "cp437"


class SourceConfig(BaseModel):
    """Which files of a source are images."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Endings of file names without dot, any case. Default None: all that the decoder reads; images of other kinds (HEIC
    # without its plugin, camera raw, PSD ...) are then counted as left out. Where it is set, nothing is counted.
    extensions: tuple[str, ...] | None = None
    # Shell patterns on the path below the source (`archive.tar#member` inside archives; `*` crosses folders).
    # Default: every image.
    include: tuple[str, ...] = ()
    # Shell patterns that win over `include`. Default: none, because hidden files are skipped anyway.
    exclude: tuple[str, ...] = ()
    # Bytes; a larger image is quarantined unread. Default 256 MiB: above any camera, below a worker's memory.
    max_bytes: int = Field(default=256 * 2**20, gt=0)
    # Column of the images in Parquet files. Default None: the only one that can store images, else an error.
    image_column: str | None = Field(default=None, min_length=1)
    # Column of the URIs where the source is a list (CSV, TSV, Parquet). Default None: one of the usual names.
    uri_column: str | None = Field(default=None, min_length=1)
    # Take the frames of videos in folders. Default False: one video has more frames than many folders have photographs.
    # A video that is the source, is listed or matches a pattern (`clips/*.mp4`) is always taken.
    videos: bool = False
    # Encoding of names in zip archives that do not say they are UTF-8. Default: the zip format's own. Archives made by
    # a Japanese Windows need cp932. Identities and ids are made of names, so it is part of the plan.
    zip_encoding: str = CP437
    # Plan images of equal content once, the first in order. Default False: it reads the whole source while planning,
    # except objects whose etag already is the MD5 of their content.
    deduplicate: bool = False

    @field_validator("zip_encoding")
    @classmethod
    def _an_encoding_of_text(cls, name: str) -> str:
        try:
            b"a".decode(name)
        except (LookupError, UnicodeError) as error:
            raise ValueError(f"{name!r} is no encoding of names (cp437, cp932, gbk, utf-8 ...)") from error
        return name

    def plan_settings(self) -> dict[str, Any]:
        """Return the settings as a plan stores them: the default `extensions` as FIRST_EXTENSIONS."""
        settings = self.model_dump(mode="json")
        settings["extensions"] = list(FIRST_EXTENSIONS if self.extensions is None else self.extensions)
        return settings

    @model_validator(mode="after")
    def _one_kind_of_table(self) -> SourceConfig:
        if self.image_column and self.uri_column:
            raise ValueError("image_column (images inside) and uri_column (a list of images) exclude one another")
        return self


class UnitsConfig(BaseModel):
    """How a plan is cut."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Images in a unit, at most. Default 256: seconds to minutes of work, so a crash costs little and a commit costs
    # nothing. A unit is held in memory: at most a million. Units of small archives are smaller, see `size_for`.
    items_per_unit: int = Field(default=256, gt=0, le=1_000_000)
    # Images in a unit, at least, where an archive is cut smaller. Default 8: a batch of the networks.
    least_items: int = Field(default=8, gt=0)

    def size_for(self, items: int, workers: int) -> int:
        """Return the items in a unit so that each worker gets four units or more: none waits long for the last one.

        >>> UnitsConfig().size_for(items=160, workers=2)
        20
        """
        shared = math.ceil(items / (UNITS_PER_WORKER * workers))
        return min(self.items_per_unit, max(self.least_items, shared))


class RayConfig(BaseModel):
    """What runs the units. Nothing here influences results, so none of it belongs in a plan's config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Address of a Ray cluster; RAY_ADDRESS wins. Default None: a cluster of this machine, started for the run.
    address: str | None = None
    # Worker processes; 0 runs the units in this process without Ray. Default None: as many as the cluster has room for.
    workers: int | None = Field(default=None, ge=0)
    # CPU cores a worker reserves, also for decoding. Default None: 1 for a worker that computes on the CPU, with one
    # thread (see `threads`); for one with a GPU, that GPU's share of its node's cores, since it computes faster than
    # one core decodes.
    cpus_per_worker: float | None = Field(default=None, gt=0)
    # GPUs a worker reserves; 0.5 puts two on one GPU, so that one computes while the other publishes.
    # Default None: 1 where the cluster has GPUs, else 0.
    gpus_per_worker: float | None = Field(default=None, ge=0)
    # Threads of torch and OpenMP in a worker. Default 1: many workers are faster than many threads, and the number
    # changes the order of sums, so it must not depend on the machine.
    threads: int = Field(default=1, gt=0)
    # Tries a unit gets before it is quarantined as a whole. Default 3: survives a lost node, ends a poisoned unit.
    attempts: int = Field(default=3, gt=0)
    # Recompute units whose rows are of an earlier result version in place (schemas/results.py), and how many of them in
    # this run. Default: none; where a plan has such rows, the run is refused. Without a limit: all of them.
    upgrade: bool = False
    upgrade_limit: int | None = Field(default=None, ge=0)
    # Seconds a unit may take before its worker is killed; not enforced with workers=0. Default: half an hour, far
    # above a normal unit.
    unit_timeout_s: float = Field(default=1800.0, gt=0)
    # Seconds a worker may take to start and load its models. Default: ten minutes, for weights read over a network.
    start_timeout_s: float = Field(default=600.0, gt=0)
    # Workers that may die in a row, with no unit finished in between, before the run is stopped. Default 20: more than
    # a poisoned unit or a lost node costs, less than a machine that is out of memory would cost.
    max_deaths_in_a_row: int = Field(default=20, gt=0)

    def without_gpus(self) -> RayConfig:
        """Return the same for work on the CPU alone: no GPU is reserved unless `gpus_per_worker` is set."""
        return self if self.gpus_per_worker is not None else self.model_copy(update={"gpus_per_worker": 0.0})
