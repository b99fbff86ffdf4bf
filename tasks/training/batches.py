"""Prepare batches in threads ahead of the training step: read blocks, decode and augment faces, all in order."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core.augment import Augmentation, augment
from deca_core.camera import IMAGE_SIZE
from deca_core.errors import DecaError
from deca_core.losses import NUM_FITTED
from deca_core.training import FaceBatch
from schemas.samples import DataConfig
from tasks.training.datasets import DamagedShard, EncodedFace, Source
from tasks.training.order import BatchPlan, Order, SamplesError

logger = logging.getLogger(__name__)

LOADERS = 4  # threads that read blocks: they wait for storage, not for a core
READ_AHEAD = 4  # blocks are read this many times farther ahead than batches are made
KEPT_SPARES = 4  # blocks read outside the order, for samples that replace damaged ones

Decoded = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]  # crop, skin mask, landmarks
Fit = NDArray[np.float32] | None
Loaded = dict[int, EncodedFace]  # faces of a block by row; empty where the shard is damaged


class DamagedFace(DecaError):
    """An unusable row: an image that does not decode, a mask of another size, landmarks that are not finite."""


class Damage:
    """Damaged faces and shards by name, each logged once; ends the run under corrupt: stop."""

    def __init__(self, corrupt: str) -> None:
        self._corrupt = corrupt
        self.found: dict[str, str] = {}  # name -> reason

    def add(self, name: str, why: str) -> None:
        """Raises SamplesError under corrupt: stop."""
        if self._corrupt == "stop":
            raise SamplesError(f"{name}: {why}. Check with `deca verify`, or set corrupt to replace")
        if name not in self.found:
            self.found[name] = why
            logger.warning("replaced in training: %s: %s", name, why)


def decode_face(face: EncodedFace) -> Decoded:
    """The pixels of a stored face. Raises DamagedFace.

    torchvision's decoder: the same pixels as Pillow's in two thirds of the time, and other threads run meanwhile.
    """
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png

    if not face.crop or not face.mask:
        raise DamagedFace("no crop" if not face.crop else "no skin mask")
    try:
        crop = decode_jpeg(_bytes(face.crop), ImageReadMode.RGB).permute(1, 2, 0).numpy()
        mask = decode_png(_bytes(face.mask), ImageReadMode.GRAY)[0].numpy()
    except RuntimeError as error:
        raise DamagedFace(str(error).partition("\n")[0]) from error
    if crop.shape[:2] != mask.shape:
        raise DamagedFace(f"crop of {crop.shape[:2]} pixels, skin mask of {mask.shape}")
    if not np.isfinite(face.landmarks).all():
        raise DamagedFace("landmarks that are not finite")
    if face.mirrored:
        crop, mask = crop[:, ::-1], mask[:, ::-1]
    return crop, mask, face.landmarks


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@dataclass(frozen=True, eq=False)
class _Pending:
    """A batch that threads are writing into."""

    batch: FaceBatch
    parts: list[Future[None]]


class BatchMaker:
    """The remaining batches of an epoch on one rank: reads blocks and makes batches ahead, returns them in order."""

    def __init__(
        self,
        source: Source,
        order: Order,
        steps: range,
        plan: BatchPlan,
        augmentation: Augmentation,
        config: DataConfig,
        damage: Damage,
    ) -> None:
        self._source, self._order, self._steps, self._plan = source, order, steps, plan
        self._augmentation, self._config, self._damage = augmentation, config, damage
        self._places = range(plan.rank * plan.subjects, (plan.rank + 1) * plan.subjects)
        self._loaders = ThreadPoolExecutor(LOADERS, "read-faces")
        self._makers = ThreadPoolExecutor(config.threads, "make-faces")
        self._blocks: dict[int, Future[Loaded]] = {}  # held from READ_AHEAD before their first batch to their last
        self._last_use: dict[int, int] = {}  # block -> index of the last batch asked for that needs it
        self._asked = self._begun = self._taken = 0  # batches, as indices of `steps`
        self._spare: dict[int, Loaded] = {}
        self._spare_lock = threading.Lock()
        self._pending: deque[_Pending] = deque()

    def take(self) -> FaceBatch:
        """Return the next batch, after starting the work on later ones."""
        while self._asked < min(self._taken + READ_AHEAD * self._config.prefetch, len(self._steps)):
            self._ask(self._asked)
            self._asked += 1
        while self._begun <= min(self._taken + self._config.prefetch, len(self._steps) - 1):
            self._pending.append(self._begin(self._steps[self._begun]))
            self._begun += 1
        pending = self._pending.popleft()
        for part in pending.parts:
            part.result()
        self._taken += 1
        self._forget()
        return pending.batch

    def close(self) -> None:
        """Stop the threads, once running work has finished."""
        self._makers.shutdown(cancel_futures=True)
        self._loaders.shutdown(cancel_futures=True)

    def _ask(self, index: int) -> None:
        """Start reading the blocks of a batch."""
        for place in self._places:
            block = self._order.block(self._order.position(self._steps[index], place))
            if block not in self._blocks:
                self._blocks[block] = self._loaders.submit(self._load, block)
            self._last_use[block] = index

    def _forget(self) -> None:
        for block in [block for block, last in self._last_use.items() if last < self._taken]:
            del self._blocks[block], self._last_use[block]

    def _begin(self, step: int) -> _Pending:
        images = self._plan.images
        count = len(self._places) * images
        batch = FaceBatch(
            images=torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE),
            landmarks=torch.ones(count, 68, 3),
            masks=torch.empty(count, 1, IMAGE_SIZE, IMAGE_SIZE),
            subjects=torch.empty(count, dtype=torch.int64),
            images_per_subject=images,
            fits=torch.full((count, NUM_FITTED), torch.nan) if self._source.fitted else None,
        )
        positions = [self._order.position(step, place) for place in self._places]
        parts = [
            self._makers.submit(self._make, batch, slice(n * images, (n + 1) * images), position)
            for n, position in enumerate(positions)
        ]
        return _Pending(batch, parts)

    def _load(self, block: int) -> Loaded:
        """The encoded faces of a block by row; empty where the shard is damaged."""
        found = self._order.members(block)
        rows = np.concatenate([self._order.stretch(identity) for identity in found.identities])
        try:
            return self._source.load(found.shard, rows)
        except DamagedShard as error:
            self._damage.add(error.uri, error.why)
            return {}

    def _make(self, batch: FaceBatch, part: slice, position: int) -> None:
        """Fill one subject's part of a batch with the sample at a position, or with the next that can be decoded."""
        for candidate in itertools.chain(range(position, len(self._order)), range(position)):
            decoded = self._decode(candidate)
            if decoded:
                break
        else:
            raise SamplesError(
                f"no sample of the epoch can be decoded, {len(self._damage.found)} faces or shards are damaged"
            )
        rng = self._order.augmentation(position)
        for row, ((crop, mask, landmarks), fit) in zip(range(part.start, part.stop), decoded, strict=True):
            face = augment(crop, landmarks, mask, rng, self._augmentation)
            batch.images[row], batch.masks[row] = torch.from_numpy(face.image), torch.from_numpy(face.mask)
            batch.landmarks[row, :, :2] = torch.from_numpy(face.landmarks)
            if batch.fits is not None and fit is not None:
                batch.fits[row] = torch.from_numpy(fit)
        batch.subjects[part] = self._order.identity(candidate)

    def _decode(self, position: int) -> list[tuple[Decoded, Fit]]:
        """K images of the sample at a position, with spares of the subject for damaged ones; empty if too few."""
        images, faces = self._plan.images, self._faces(self._order.block(position))
        decoded: list[tuple[Decoded, Fit]] = []
        for row in self._order.rows(position):
            if int(row) not in faces:  # of a damaged shard
                return []
            try:
                decoded.append((decode_face(faces[int(row)]), faces[int(row)].fit))
            except DamagedFace as error:
                self._damage.add(faces[int(row)].name, str(error))
            if len(decoded) == images:
                return decoded
        if not decoded or self._config.few_pictures == "skip":
            return []
        return [decoded[n % len(decoded)] for n in range(images)]

    def _faces(self, block: int) -> Loaded:
        """The faces of a block: read ahead, or now for a replacement sample."""
        ahead = self._blocks.get(block)
        if ahead is not None:
            return ahead.result()
        with self._spare_lock:
            if block not in self._spare:
                while len(self._spare) >= KEPT_SPARES:
                    del self._spare[next(iter(self._spare))]
                self._spare[block] = self._load(block)
            return self._spare[block]
