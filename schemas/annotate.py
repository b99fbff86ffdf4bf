"""Config of the annotators: which provider finds, marks, segments and embeds faces, and within which limits."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationInfo, field_validator, model_validator

from schemas.secrets import Uri

Step = Literal["detect", "landmarks", "segment", "embed"]
Provider = Literal["dlib", "facexlib", "face_alignment", "sidecar"]
STEPS: tuple[Step, ...] = get_args(Step)

# What each provider can do. dlib, whose weights are installed with it, does everything.
OFFERS: dict[Provider, tuple[Step, ...]] = {
    "dlib": STEPS,
    "facexlib": ("detect", "segment", "embed"),
    "face_alignment": ("landmarks",),
    "sidecar": ("detect", "landmarks", "segment"),
}


class DlibConfig(BaseModel):
    """Limits of dlib's detectors, whose smallest face is about 80 pixels wide."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # hog: frontal to half-profile faces, 20 to 200 ms an image on one core.
    # cnn: any pose, but 1 to 20 s an image without a GPU.
    detector: Literal["hog", "cnn"] = "hog"

    # An image whose long side is shorter than this (pixels) is enlarged for detection...
    min_side: int = Field(default=1024, ge=80)
    # ...but at most by this factor: 2 finds faces down to 40 source pixels; smaller ones carry no detail.
    max_upsample: float = Field(default=2.0, ge=1.0, le=8.0)
    # An image whose long side is longer (pixels) is reduced: time and memory stay bounded, and faces narrower
    # than a twentieth of the image's long side are not found.
    max_side: int = Field(default=1600, ge=80)

    @model_validator(mode="after")
    def _sides_in_order(self) -> DlibConfig:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is larger than max_side {self.max_side}")
        return self


class FacexlibConfig(BaseModel):
    """Which of facexlib's networks to use."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # RetinaFace on this backbone. resnet50: more accurate. mobile0.25: a twentieth of its time, for CPUs.
    detector: Literal["resnet50", "mobile0.25"] = "resnet50"
    # An image whose long side is longer (pixels) is reduced for detection. 840 is the side of the training images of
    # resnet50 (640 for mobile0.25): there, the anchors of 16 to 512 pixels cover faces from a fiftieth of the image
    # to all of it. Smaller images are not enlarged: the smallest anchors need no more.
    max_side: int = Field(default=840, ge=64)
    # Face parsing with 19 classes. bisenet: 0.3 s a face on a CPU. parsenet: finer borders, 5 s, meant for a GPU.
    parser: Literal["bisenet", "parsenet"] = "bisenet"


class FaceAlignmentConfig(BaseModel):
    """How FAN predicts landmarks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Average the heat maps of the face and of its mirror image, as the library does by default: more stable, twice
    # the time.
    flip: bool = True


# Classes of published label maps that are skin as every provider means it: skin, brows, nose and lips; not eyes, inner
# mouth, ears, neck, hair or glasses. All number 19 classes from 0, the background, in one of two orders.
# celebamask-hq: skin, nose, glasses, l_eye, r_eye, l_brow, r_brow, l_ear, r_ear, mouth, u_lip, l_lip, hair, hat,
# earring, necklace, neck, cloth. ffhq: the maps of FFHQ-Aging, in that order.
# face-parsing: skin, l_brow, r_brow, l_eye, r_eye, glasses, l_ear, r_ear, earring, nose, mouth, u_lip, l_lip, neck,
# necklace, cloth, hair, hat; as face-parsing.PyTorch (BiSeNet) makes them, of FFHQ too.
LabelMap = Literal["celebamask-hq", "ffhq", "face-parsing"]
SKIN_CLASSES: dict[LabelMap, tuple[int, ...]] = {
    "celebamask-hq": (1, 2, 6, 7, 11, 12),
    "ffhq": (1, 2, 6, 7, 11, 12),
    "face-parsing": (1, 2, 3, 10, 12, 13),
}
MAP_CLASSES = 19


class SidecarConfig(BaseModel):
    """Where the labels of an image are, relative to its folder (or to its folder inside a tar or zip).

    {stem} is the image's name without extension, {name} the name with it; the first pattern that exists is taken.
    Each pattern that does not exist costs one request: on a bucket, name only what you have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # .npy (68, 2) or (faces, 68, 2); .txt, one point a line; .mat with pt3d_68, as AFLW2000 has it. A .pts, as 300-W
    # has, is read where it is named: a longer default would change the plan of every existing dataset.
    landmarks: tuple[str, ...] = ("{stem}.npy", "{stem}.txt", "{stem}.mat")
    # .png or .npy of the image's own size. A mask beside images looks like an image: give the source the
    # `exclude` pattern *_mask.png.
    mask: tuple[str, ...] = ("{stem}_mask.png", "{stem}_mask.npy")
    # Which classes of a label map are skin: their numbers, or the name of the map. None: masks are binary (bool, 0
    # and 1, 0 to 255, 0 to 65535, floats above 0.5), and any other file is refused.
    mask_values: LabelMap | tuple[NonNegativeInt, ...] | None = None
    # .txt whose first line names the identity, with any provider; () reads none. An image without such a file has no
    # label.
    identity: tuple[str, ...] = ()

    @field_validator("mask_values")
    @classmethod
    def _some_class(cls, values: LabelMap | tuple[int, ...] | None) -> LabelMap | tuple[int, ...] | None:
        if values == ():
            raise ValueError("name at least one class that is skin, or leave it out")
        return values

    @field_validator("landmarks", "mask", "identity")
    @classmethod
    def _known_files(cls, patterns: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = {"landmarks": (".npy", ".txt", ".mat", ".pts"), "mask": (".png", ".npy")}.get(
            info.field_name or "", (".txt",)
        )
        if not patterns and info.field_name != "identity":
            raise ValueError(f"at least one pattern is needed, for example {{stem}}{known[0]}")
        for pattern in patterns:
            if not pattern.endswith(known) or not ("{stem}" in pattern or "{name}" in pattern):
                raise ValueError(f"{pattern!r} must contain {{stem}} or {{name}} and end in one of {' '.join(known)}")
        return patterns


class AnnotateConfig(BaseModel):
    """How faces are found and described."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # For every step that is not set below and that this provider can do; dlib does the others (see OFFERS).
    # dlib is the default because its weights come with the installation.
    provider: Provider = "dlib"

    # Provider of one step; None: as above.
    detect: Provider | None = None
    landmarks: Provider | None = None
    segment: Provider | None = None
    embed: Provider | None = None

    # Folder or bucket (any fsspec URI) that mirrors the providers' weight files under their own names. A file missing
    # there is taken from its library's cache. None: that cache, or else the library's own URL.
    weights_uri: Uri | None = None

    # Where facexlib and face_alignment run. auto: on a GPU if the worker has one; the machine that plans may have none.
    device: Literal["auto", "cpu"] = "auto"

    # Detections below are dropped; None is the detector's own default (MIN_SCORE in the provider's module).
    min_score: float | None = None

    # Faces kept of one image, largest first: bounds the cost of a crowd.
    max_faces: int = Field(default=100, ge=1)

    # Images that declare more pixels (width x height) are refused before decoding.
    max_pixels: int = Field(default=100_000_000, ge=1)

    dlib: DlibConfig = DlibConfig()
    facexlib: FacexlibConfig = FacexlibConfig()
    face_alignment: FaceAlignmentConfig = FaceAlignmentConfig()
    sidecar: SidecarConfig = SidecarConfig()

    @model_validator(mode="after")
    def _steps_on_offer(self) -> AnnotateConfig:
        for step in STEPS:
            chosen = getattr(self, step)
            if chosen is not None and step not in OFFERS[chosen]:
                able = ", ".join(name for name, steps in OFFERS.items() if step in steps)
                raise ValueError(f"annotate.{step}: {chosen} does not do this step; choose one of {able}")
        return self

    @model_validator(mode="after")
    def _one_meaning_a_file(self) -> AnnotateConfig:
        both = set(self.sidecar.identity) & set(self.sidecar.landmarks)
        if both and {"detect", "landmarks"} & set(self.steps_of("sidecar")):
            raise ValueError(f"annotate.sidecar: {min(both)} is named for landmarks and for identity; set both")
        return self

    def provider_of(self, step: Step) -> Provider:
        """Return the provider of a step: its own setting, else the common provider if it can, else dlib."""
        chosen: Provider | None = getattr(self, step)
        if chosen is not None:
            return chosen
        return self.provider if step in OFFERS[self.provider] else "dlib"

    @property
    def on_gpu(self) -> bool:
        """Whether a step runs on a GPU where the worker has one; dlib's wheel and the sidecar's files do not."""
        return self.device == "auto" and any(self.steps_of(name) for name in ("facexlib", "face_alignment"))

    def steps_of(self, provider: Provider) -> tuple[Step, ...]:
        """Return the steps that a provider does under this config."""
        return tuple(step for step in STEPS if self.provider_of(step) == provider)
