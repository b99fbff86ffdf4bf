"""Config of the annotators: which provider finds, marks, segments and embeds faces, and within which limits."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DlibConfig(BaseModel):
    """Limits of dlib's detectors, whose smallest face is about 80 pixels wide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # hog: frontal to half-profile faces, 20 to 200 ms a picture on one core.
    # cnn: any pose, but 1 to 20 s a picture without a GPU.
    detector: Literal["hog", "cnn"] = "hog"

    # A picture whose long side is shorter than this (pixels) is enlarged for detection...
    min_side: int = Field(default=1024, ge=80)
    # ...but at most by this factor: 2 finds faces down to 40 source pixels; smaller ones carry no detail.
    max_upsample: float = Field(default=2.0, ge=1.0, le=8.0)
    # A picture whose long side is longer (pixels) is reduced: time and memory stay bounded, and faces narrower
    # than a twentieth of the picture's long side are given up.
    max_side: int = Field(default=1600, ge=80)

    @model_validator(mode="after")
    def _sides_in_order(self) -> DlibConfig:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is larger than max_side {self.max_side}")
        return self


class AnnotateConfig(BaseModel):
    """How faces are found and described."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # dlib is embedded: its weights come with the installation.
    provider: Literal["dlib"] = "dlib"

    # Folder or bucket (any fsspec URI) that mirrors the provider's weight files under their own names.
    # None: the files that were installed with the package.
    weights_uri: str | None = None

    # Detections below are dropped; None is the detector's own default (see tasks/annotators/dlib_provider.py).
    min_score: float | None = None

    # Faces kept of one picture, largest first: bounds what a crowd costs.
    max_faces: int = Field(default=100, ge=1)

    # Pictures that declare more pixels (width x height) are refused before decoding.
    max_pixels: int = Field(default=100_000_000, ge=1)

    dlib: DlibConfig = DlibConfig()
