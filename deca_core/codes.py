"""The codes of faces: outputs of the encoders and inputs of the decoders (paper sections 4.1 and 4.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from deca_core.errors import DecaError

# Order and length of the coarse code vector; `light` is 9 spherical-harmonics bands by 3 colours, flattened.
COARSE_LENGTHS = {"shape": 100, "tex": 50, "exp": 50, "pose": 6, "cam": 3, "light": 27}
NUM_COARSE = sum(COARSE_LENGTHS.values())  # 236
NUM_DETAIL = 128
SHAPES = {name: (9, 3) if name == "light" else (count,) for name, count in COARSE_LENGTHS.items()} | {
    "detail": (NUM_DETAIL,)
}
CODE_NAMES = tuple(SHAPES)  # in code order


class CodesError(DecaError, ValueError):
    """Codes whose fields have wrong shapes or batch sizes, or that are not finite."""


@dataclass(frozen=True)
class Codes:
    """A batch of B faces as codes. Fields are tensors with the batch first.

    shape (B,100) and exp (B,50): FLAME coefficients; tex (B,50): albedo coefficients;
    pose (B,6): axis-angle of the head (0:3) and of the jaw (3:6), radians;
    cam (B,3): weak-perspective s, tx, ty; light (B,9,3): SH band by RGB; detail (B,128).

    >>> mixed = Codes.animate(source=codes[:1], driver=codes[1:2])  # doctest: +SKIP
    """

    shape: Tensor
    tex: Tensor
    exp: Tensor
    pose: Tensor
    cam: Tensor
    light: Tensor
    detail: Tensor

    def __post_init__(self) -> None:
        for name, value in self.items():
            own, shape = SHAPES[name], getattr(value, "shape", None)
            if not isinstance(value, Tensor) or shape is None or tuple(shape[1:]) != own or len(shape) != 1 + len(own):
                found = type(value).__name__ if shape is None else f"{type(value).__name__} {tuple(shape)}"
                expected = ", ".join(map(str, ("B", *own)))
                raise CodesError(f"codes: {name} is {found}, expected a tensor ({expected}); one face is codes[:1]")
        counts = {len(value) for _, value in self.items()}
        if len(counts) > 1:
            found = ", ".join(f"{name} {len(value)}" for name, value in self.items())
            raise CodesError(f"codes: the fields are of different numbers of faces: {found}")

    def check(self) -> None:
        """Raise CodesError where a code is not finite, naming the field and the face."""
        for name, value in self.items():
            fine = value.detach().flatten(1).isfinite().all(1)
            if not fine.all():
                face = int((~fine).nonzero()[0, 0])
                raise CodesError(
                    f"codes: {name} of face {face} of {len(value)} is not finite. Leave the face out: codes[good], or "
                    "check the images and the checkpoint that it came from"
                )

    @property
    def jaw(self) -> Tensor:
        """Jaw rotation, axis-angle, (B,3)."""
        return self.pose[:, 3:]

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Codes:
        return Codes(**{name: value[index] for name, value in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of every field, in code order."""
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def replace(self, **fields: Tensor) -> Codes:
        """A copy with some fields exchanged: `codes.replace(exp=other.exp)`."""
        return dataclasses.replace(self, **fields)

    def to(self, *args: object, **kwargs: object) -> Codes:
        """`Tensor.to` on every field."""
        return Codes(**{name: value.to(*args, **kwargs) for name, value in self.items()})  # type: ignore[call-overload]

    @staticmethod
    def cat(parts: list[Codes]) -> Codes:
        """Batches joined along the first axis."""
        return Codes(**{name: torch.cat([getattr(part, name) for part in parts]) for name, _ in parts[0].items()})

    @staticmethod
    def from_vectors(coarse: Tensor, detail: Tensor) -> Codes:
        """Split the networks' outputs: coarse (B,236) and detail (B,128)."""
        parts = dict(zip(COARSE_LENGTHS, coarse.split(list(COARSE_LENGTHS.values()), dim=1), strict=True))
        parts["light"] = parts["light"].reshape(-1, 9, 3)
        return Codes(**parts, detail=detail)

    @staticmethod
    def zeros(batch: int = 1, device: torch.device | str | None = None) -> Codes:
        """The mean face, unlit, at camera scale 0."""
        return Codes.from_vectors(
            torch.zeros(batch, NUM_COARSE, device=device), torch.zeros(batch, NUM_DETAIL, device=device)
        )

    @staticmethod
    def animate(source: Codes, driver: Codes) -> Codes:
        """Expression and jaw of `driver` on the head of `source` (eq. 9, fig. 4).

        Shape, albedo, detail code, head pose, camera and light stay the source's. One side may hold a single face:
        it is then repeated for every face of the other.
        """
        size = max(len(source), len(driver))
        for name, codes in (("source", source), ("driver", driver)):
            if len(codes) not in (1, size):
                raise ValueError(f"animate: {name} has {len(codes)} faces, expected 1 or {size}")
        still = Codes(**{name: value.expand(size, *value.shape[1:]) for name, value in source.items()})
        exp, jaw = (value.expand(size, *value.shape[1:]) for value in (driver.exp, driver.jaw))
        return still.replace(exp=exp, pose=torch.cat([still.pose[:, :3], jaw], dim=1))
