"""Recipes: the weights of every loss in the three stages, as in the paper and as in the release of its code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

RecipeName = Literal["paper", "release"]
# Losses that are sums over the batch; the others are means. Gradient accumulation depends on it.
SUMMED = ("shape", "exp", "tex", "mrf", "symmetry")


@dataclass(frozen=True)
class CoarseWeights:
    """Weights of the losses on E_c; a loss of weight 0 is not computed. Defaults: the coarse stage of the paper."""

    landmark: float = 1.0
    eye_closure: float = 1.0
    # Not among the paper's losses; the release has it at 0.5 and closes mouths better.
    lip_distance: float = 0.0
    photometric: float = 2.0
    # Identity carries shape that landmarks cannot show; a small share, because it also reacts to details of the image.
    identity: float = 0.2
    # Sums over the batch: their share grows with the batch, as in the release.
    shape: float = 1e-4
    exp: float = 1e-4
    tex: float = 1e-4
    # Without it the light explains the colour of the skin, and the albedo stays grey.
    light: float = 1.0
    # Distance from the fit to the landmarks. Not the paper's, which trains for days: with it a short training learns
    # shape from the first steps on.
    fit: float = 0.0
    # Eq. 8: the losses also hold for the batch with shape codes exchanged inside each subject.
    shape_consistency: bool = True
    # The paper renders with light (eq. 2). The release compares the bare albedo with the image.
    lit: bool = True
    # Images are compared where they show skin of the face; False: wherever the head's face is, hair and hands too.
    skin_mask: bool = True


@dataclass(frozen=True)
class DetailWeights:
    """Weights of the losses on E_d and F_d; a loss of weight 0 is not computed. Defaults: the paper."""

    photometric: float = 2.0
    # The product of the photometric weight 2 and its own 0.05. A sum over the batch.
    mrf: float = 0.1
    # A sum over texels and batch, hence small; it only fills what the image does not show.
    symmetry: float = 0.005
    displacement: float = 0.005
    # Not among the paper's losses; in the release it keeps noise out of the shading.
    shading_smoothness: float = 0.0
    # VGG19 layers of ID-MRF and their weights, section 4.2.
    mrf_layers: dict[str, float] = field(default_factory=lambda: {"conv3_2": 1.0, "conv4_2": 2.0})
    # Pixels on a side of the patch that VGG19 sees; its cost grows with the square, that of ID-MRF with the fourth
    # power: on a CPU 64 is what one can wait for.
    mrf_size: int = 256
    # Eq. 15: the losses also hold for the batch with detail codes exchanged inside each subject.
    detail_consistency: bool = True
    # Texels are compared that face the camera and show skin; False: all that face the camera inside of the image.
    skin_mask: bool = True


@dataclass(frozen=True)
class Recipe:
    """The weights of all stages."""

    name: str
    pretrain: CoarseWeights
    coarse: CoarseWeights
    detail: DetailWeights


def recipe(name: RecipeName) -> Recipe:
    """The weights under a name: "paper" (default everywhere) or "release"."""
    if name == "paper":
        coarse, detail = CoarseWeights(), DetailWeights()
    elif name == "release":
        coarse = CoarseWeights(lip_distance=0.5, lit=False)
        detail = DetailWeights(shading_smoothness=0.005, mrf_layers={"relu3_1": 1.0, "relu4_1": 2.0})
    else:
        raise ValueError(f"unknown recipe {name!r}; choose paper or release")
    return Recipe(name, pretraining(coarse), coarse, detail)


def pretraining(coarse: CoarseWeights) -> CoarseWeights:
    """Weights of the pretrain stage: landmark losses and priors; nothing is rendered, one image a subject is enough."""
    return replace(coarse, photometric=0.0, identity=0.0, tex=0.0, light=0.0, shape_consistency=False)
