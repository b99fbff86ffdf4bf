"""Settings of what feeds training: which pictures of a person make a sample, how far reading runs ahead."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataConfig(BaseModel):
    """How faces become batches. A resumed run must keep what decides the order: all but the last three."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # An identity with fewer pictures than a sample needs: leave it out, or fill the sample with repeated pictures.
    # Default skip: two equal pictures teach shape consistency nothing.
    few_pictures: Literal["skip", "repeat"] = "skip"
    # Pictures of one identity in an epoch, a new stretch of neighbouring rows each time. Default 64: celebrities with
    # thousands of pictures would fill an epoch otherwise.
    pictures_per_identity: int = Field(default=64, ge=1)
    # Faces that are read, and shuffled, together. Every place of a batch reads a block of its own, so a rank holds
    # about subjects * block_faces encoded faces of some 40 kB. Default 256: four row groups, 10 MB a read.
    block_faces: int = Field(default=256, ge=1)
    # Side of training's crops over the size of the face, drawn evenly from here to there. Default: the release's range,
    # which ends short of the crop that it infers from, 1.375.
    crop_scale: tuple[float, float] = (1.4, 1.8)
    # Take the mirror image of every person for one more person. Default False, as in the release: millions of pictures
    # need it less than hundreds.
    mirror: bool = False
    # A picture or a shard that cannot be decoded: take another picture of the person (of the next person where none is
    # left), or stop. Replacements are the same in every run.
    corrupt: Literal["replace", "stop"] = "replace"
    # Threads that decode and augment. Default 4: a data centre GPU eats what about that many cores prepare.
    threads: int = Field(default=4, ge=1)
    # Finished batches that may wait for the training step.
    prefetch: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _crops_lie_in_the_stored_ones(self) -> DataConfig:
        low, high = self.crop_scale
        if not 1 <= low <= high <= 1.8:  # beyond, shifted crops would leave the stored picture
            raise ValueError(f"crop_scale {low}, {high}: expected 1 <= low <= high <= 1.8")
        return self
