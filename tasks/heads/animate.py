"""The worker of animate: frames of a head under a motion as rows, clips, GLB and code files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from deca_core import DECA, Codes
from deca_core.animation import Motion
from deca_core.detail import MAX_DISPLACEMENT
from deca_core.errors import DecaError
from deca_core.export.gltf import Animation, head_glb
from schemas.animate import AnimateConfig, View, animation_schema
from schemas.ledger import Item, Quarantined, StoredFile
from schemas.reconstruct import ReconstructConfig, quantise
from tasks.annotate.find_faces import record_batch
from tasks.heads.cast import CastError, CastReader
from tasks.heads.clips import write_clip
from tasks.models.loading import load_model, weights_hash
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store
from tasks.units.commit import Rows, UnitOutput
from tasks.units.plan import FILES

SOURCE = "animate://cast"  # a plan's source where nothing is listed
FRAMES_AT_ONCE = 8  # decoded and rendered together: 150 MB at 384 pixels
BACKGROUND = 0.11  # grey of a clip
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
NAME_LIMIT = 40  # characters of each side of a file's name


class AnimateError(DecaError):
    """Frames that are not finite."""


def animation_items(heads: Sequence[str], motions: Sequence[str]) -> Iterator[Item]:
    """One item an animation: every head with every motion."""
    for index, (head, motion) in enumerate(product(heads, motions)):
        yield Item(index, head, motion, index, root="")


def model_config(config: AnimateConfig) -> ReconstructConfig:
    """How `deca reconstruct` would load the model, and reconstruct the images and videos that are named."""
    return ReconstructConfig(
        source=SOURCE,
        dest=config.dest,
        codes=config.codes,
        checkpoint=config.checkpoint,
        bundle=config.bundle,
        seed=config.seed,
        precision="fp32",
        annotate=config.annotate,
        ray=config.ray.model_copy(update={"workers": 0}),
    )


class AnimateWorker:
    """Holds the model and the cast, and turns units into rows and files; one in each Ray actor."""

    def __init__(self, config: AnimateConfig, identities: str, expressions: str, motions: int) -> None:
        """identities, expressions: files of the cast below DEST; motions: how many the cast has."""
        self.config, self.motions = config, motions
        model = model_config(config)
        self.checkpoint = weights_hash(model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: DECA = load_model(model).to(self.device)
        self.model.D_detail.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast
        self.cast = CastReader(config.dest, identities, expressions)
        self.limit = MAX_DISPLACEMENT + float(self.model.fixed_displacement.abs().max())
        self.schema = animation_schema(config.outputs, self.limit)
        self.store = Store(config.dest)

    def process(self, items: Sequence[Item]) -> UnitOutput:
        """Rows of every frame of every animation, in the items' order; one that fails is quarantined alone."""
        quarantine: list[Quarantined] = []
        files: list[StoredFile] = []
        return UnitOutput(Rows(self.schema, self._batches(items, quarantine, files)), quarantine, files)

    def _batches(
        self, items: Sequence[Item], quarantine: list[Quarantined], files: list[StoredFile]
    ) -> Iterator[pa.RecordBatch]:
        for item in items:
            head, move = divmod(int(item.offset or 0), self.motions)
            try:
                identity, source = self.cast.head(head)
                expression, motion = self.cast.motion(move)
            except CastError as error:
                quarantine.append(Quarantined.of(item, "read", error))
                continue
            try:
                codes = motion.on(source)
                if not all(bool(value.isfinite().all()) for _, value in codes.items()):
                    raise AnimateError("the codes are not finite")
                names = self._files(item, identity, expression, motion, codes, files)
                table = self._rows(item, identity, expression, motion, codes, names)
            except (AnimateError, ValueError) as error:
                quarantine.append(Quarantined.of(item, "encode", error))
                continue
            yield from table

    # --- rows ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _rows(
        self, item: Item, identity: str, expression: str, motion: Motion, codes: Codes, names: dict[str, str]
    ) -> list[pa.RecordBatch]:
        batches = []
        for start in range(0, len(motion), FRAMES_AT_ONCE):
            own = codes[start : start + FRAMES_AT_ONCE]
            count, frames = len(own), np.arange(start, start + len(own))
            columns: dict[str, Any] = {
                "face_id": [f"{item.image_id}-{frame:05d}" for frame in frames],
                "animation_id": [item.image_id] * count,
                "identity": [identity] * count,
                "expression": [expression] * count,
                "frame": frames.tolist(),
                "time": motion.times[start : start + count].tolist(),
                "checkpoint": [self.checkpoint] * count,
                **{name: [file] * count for name, file in names.items()},
                **{name: value.numpy() for name, value in own.items()},
            }
            if "displacement" in self.config.outputs:
                maps = self.model.displacement(own.to(self.device))[:, 0].cpu().numpy()
                columns["displacement"] = quantise(maps, self.limit)
            batches.append(record_batch(self.schema, columns))
        return batches

    # --- files --------------------------------------------------------------------------------------------------------

    def _files(
        self, item: Item, identity: str, expression: str, motion: Motion, codes: Codes, files: list[StoredFile]
    ) -> dict[str, str]:
        """Publish the files of `outputs`; returns their names by column."""
        stem = file_stem(item, identity, expression)
        makers = {"clip": (".mp4", self._clip), "glb": (".glb", self._glb), "npz": (".npz", _npz)}
        names: dict[str, str] = {}
        for kind, (ending, make) in makers.items():
            if kind in self.config.outputs:
                name = stem + ending
                size, sha256 = self.store.write(name, make(motion, codes))
                files.append(StoredFile(file=name, bytes=size, sha256=sha256))
                names[kind] = name
        return names

    def _clip(self, motion: Motion, codes: Codes) -> bytes:
        with temp_folder("clip") as folder:
            path = folder / "clip.mp4"
            write_clip(path, self._frames(codes), motion.times.tolist(), 1 / self.config.fps)
            return path.read_bytes()

    @torch.inference_mode()
    def _frames(self, codes: Codes) -> Iterator[NDArray[np.uint8]]:
        """The frames of the clip, (size, views * size, 3)."""
        for start in range(0, len(codes), FRAMES_AT_ONCE):
            own = codes[start : start + FRAMES_AT_ONCE].to(self.device)
            yield from views(self.model, own, self.config.views, self.config.size)

    def _glb(self, motion: Motion, codes: Codes) -> bytes:
        used = max(1, motion.components)
        clip = Animation(motion.times.astype(np.float32), motion.exp[:, :used], motion.jaw)
        home = codes[:1].to(self.device)
        return head_glb(self.model, home, animation=clip if len(motion) > 1 else None)


def views(model: DECA, codes: Codes, kinds: Sequence[View], size: int) -> NDArray[np.uint8]:
    """Frames (T, size, len(kinds) * size, 3) of heads on plain grey: clay without and with detail, and coloured."""
    drawn = model.render(codes, model.decode(codes), size)
    found = {"shape": drawn.shape, "detail": drawn.shaded_detail, "image": drawn.detail_images}
    panels = [found[kind].clamp(0, 1) * drawn.alpha + BACKGROUND * (1 - drawn.alpha) for kind in kinds]
    images = (torch.cat(panels, dim=3) * 255).round().to(torch.uint8)
    return np.asarray(images.permute(0, 2, 3, 1).cpu().numpy())


def file_stem(item: Item, identity: str, expression: str) -> str:
    """The path of an animation's files below DEST, without ending: readable, and unique by the item's id."""
    words = "--".join(_short(name) for name in (identity, expression))
    return f"{FILES}/{item.image_id[:2]}/{words}-{item.image_id[:8]}"


def _short(name: str) -> str:
    """The last component of a name, safe in a file name."""
    last = name.rstrip("/").rpartition("/")[2]
    return UNSAFE.sub("-", last).strip("-.")[-NAME_LIMIT:] or "x"


def _npz(motion: Motion, codes: Codes) -> bytes:
    """Codes and times as .npz: times (T,) seconds, and one array (T, ...) for each code."""
    buffer = io.BytesIO()
    arrays = {"times": motion.times} | {name: value.numpy() for name, value in codes.items()}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
