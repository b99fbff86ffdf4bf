"""Settings of the training data: which images of an identity form a sample, and how far reading runs ahead."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataConfig(BaseModel):
    """How faces become batches. A resumed run must keep what decides the order: all but the last three."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # An identity with fewer images than a sample needs: leave it out, or fill the sample with repeated images.
    # Default skip: two equal images teach shape consistency nothing.
    few_pictures: Literal["skip", "repeat"] = "skip"
    # Images of one identity in an epoch, another run of neighbouring rows each time. Default 64: celebrities with
    # thousands of images would fill an epoch otherwise.
    pictures_per_identity: int = Field(default=64, ge=1)
    # Faces that are read, and shuffled, together. Every place of a batch reads a block of its own, so a rank holds
    # about subjects * block_faces encoded faces of some 40 kB. Default 256: four row groups, 10 MB a read.
    block_faces: int = Field(default=256, ge=1)
    # Range of the image crop scale in training: side of the crop over the size of the face, uniform. Default: the
    # release's range, which does not include the scale of its inference, 1.375.
    crop_scale: tuple[float, float] = (1.4, 1.8)
    # Use the mirror images of every identity as one more identity. Default False, as in the release: millions of images
    # need it less than hundreds.
    mirror: bool = False
    # An image or a shard that cannot be decoded: take another image of the identity (of the next identity where none is
    # left), or stop. Replacements are the same in every run.
    corrupt: Literal["replace", "stop"] = "replace"
    # Threads that decode and augment. Default 4: a data centre GPU consumes what about that many cores prepare.
    threads: int = Field(default=4, ge=1)
    # Finished batches that may wait for the training step.
    prefetch: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _crops_lie_in_the_stored_ones(self) -> DataConfig:
        low, high = self.crop_scale
        if not 1 <= low <= high <= 1.8:  # beyond, shifted crops would leave the stored image
            raise ValueError(f"crop_scale {low}, {high}: expected 1 <= low <= high <= 1.8")
        return self
