"""Settings of the train flow: stages, optimiser, networks, checkpoints; and the records that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.ledger import StoredFile
from schemas.samples import DataConfig
from schemas.secrets import Uri

SCHEMA_VERSION = 1

StageName = Literal["pretrain", "coarse", "detail"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class WorldConfig(BaseModel):
    """Subjects of the embedded world, rendered in memory, in place of a faces/ dataset (`source: world`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    people: int = Field(default=100, ge=1)
    # Photographs of each.
    images: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0)
    # More subjects, which training never sees, for validation.
    val_people: int = Field(default=8, ge=1)


class StageConfig(BaseModel):
    """One stage of training (numerics of the release: its batch sizes, Adam at 1e-4 throughout)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Optimiser steps. 0 leaves the stage out.
    steps: int = Field(ge=0)
    # Subjects in a batch, over all ranks and accumulated parts together.
    subjects: int = Field(ge=1)
    # Images of each subject, K of the paper. Shape and detail consistency need at least 2.
    images: int = Field(ge=1)
    # Step size of Adam. Default: the release's.
    lr: float = Field(default=1e-4, gt=0)
    # Decay of the step size: none, as in the release, or to a hundredth along half a cosine, which a short run needs.
    schedule: Literal["constant", "cosine"] = "constant"
    # Steps over which the step size rises from zero. Default 0, as in the release.
    warmup: int = Field(default=0, ge=0)
    # Parts that a batch is cut into, one after the other, where it does not fit into memory.
    accumulate: int = Field(default=1, ge=1)
    # As the run's `precision`, for this stage alone. None: the run's.
    precision: Literal["auto", "fp32", "bf16"] | None = None

    @model_validator(mode="after")
    def _whole_parts(self) -> StageConfig:
        if self.subjects % self.accumulate:
            raise ValueError(f"subjects {self.subjects} is not a multiple of accumulate {self.accumulate}")
        return self


class NetworksConfig(BaseModel):
    """The pretrained loss networks: identity (eq. 7) and ID-MRF (eq. 13)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # vggface2: the release's ResNet50, and arcface, facexlib's, need `identity_weights`; dlib: its weights come with a
    # dependency; random: a ResNet with seeded random weights, which compares colours, not identities. auto: vggface2
    # where weights are given, else dlib.
    identity: Literal["auto", "vggface2", "arcface", "dlib", "random"] = "auto"
    # resnet50_ft_weight.pkl of VGGFace2 (read without executing a pickle), the ArcFace file, or in place of the
    # dependency's another copy of dlib's .dat; any fsspec URI.
    identity_weights: Uri | None = None
    # auto: VGG19 from `perceptual_weights` where given, else torchvision's if it can be had, else seeded random.
    perceptual: Literal["auto", "vgg19", "random"] = "auto"
    # A VGG19 state dict (.pth or .safetensors) with torchvision's names; any fsspec URI.
    perceptual_weights: Uri | None = None


class TrainRayConfig(BaseModel):
    """What trains. The number of workers changes batches per rank but not the batch."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Address of a Ray cluster; RAY_ADDRESS wins. None: a cluster of this machine, started for the run.
    address: str | None = None
    # Ranks; 0 trains in this process without Ray. Default None: one per GPU, or 0 where the machine has none.
    workers: int | None = Field(default=None, ge=0)
    # CPU cores a rank reserves and computes with (without a GPU).
    cpus_per_worker: int = Field(default=1, ge=1)
    # Restarts after a dead rank; each resumes from the last checkpoint.
    max_failures: int = Field(default=3, ge=0)


PresetName = Literal["paper", "small"]
FALLING = {"schedule": "cosine", "warmup": 20}
# Settings by the name of a preset; any setting that is given wins over its own.
PRESETS: dict[PresetName, dict[str, Any]] = {
    # The release's batches and steps: days of a GPU.
    "paper": {
        "pretrain": {"steps": 100_000, "subjects": 64, "images": 1},
        "coarse": {"steps": 200_000, "subjects": 8, "images": 2},
        "detail": {"steps": 250_000, "subjects": 6, "images": 3},
    },
    # A laptop's: minutes for each stage, the step size falling to the end. The backbone is dlib's, whose weights come
    # with a dependency, and which CPUs with bf16 run faster than networks of a tenth of its products.
    "small": {
        "backbone": "dlib",
        "pretrain": {"steps": 1500, "subjects": 32, "images": 1, "lr": 2e-4, "schedule": "cosine", "warmup": 100},
        "coarse": {"steps": 300, "subjects": 8, "images": 2, "lr": 1e-4, **FALLING},
        "detail": {"steps": 150, "subjects": 2, "images": 2, "lr": 5e-4, **FALLING},
        # Landmark fits regularise head and expression in place of the priors, which are sums over the batch and have to
        # be weak in a short training. Identity is left out to save time: dlib's network makes a coarse step longer by
        # two fifths, a ResNet50 by far more.
        "weights": {
            "pretrain": {"shape": 1e-6, "exp": 1e-6, "fit": 0.2},
            "coarse": {"shape": 1e-6, "exp": 1e-6, "fit": 0.2, "identity": 0.0},
        },
        # Scales around the crop of inference; mirrored, because subjects are few.
        "data": {"crop_scale": (1.3, 1.7), "mirror": True},
        "mrf_size": 64,
        "slow_ends": True,
        "ema": 0.99,
        "checkpoint_every": 100,
    },
}


class TrainConfig(BaseModel):
    """Settings of `deca train` and of the deployment `train`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # A faces/ dataset (any fsspec URI), or "world": the embedded world, in memory.
    source: Uri
    # Folder or bucket prefix for checkpoints and the trained model; any fsspec URI.
    dest: Uri
    # Defaults of all other settings: the paper's (paper), or a laptop's (small).
    preset: PresetName = "paper"
    # Version of the faces/ dataset. None: the current one, which the run then keeps.
    version: int | None = Field(default=None, ge=1)
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    # Head bundle folder. None: the procedural head.
    bundle: Uri | None = None
    # resnet50 as in the paper; dlib, which starts from the trained weights of a dependency; or
    # mobilenet_v3_small. Others: deca_core.encoder.register_backbone.
    backbone: str = "resnet50"
    # Weights to start from (checkpoint folder, any fsspec URI). None: random ones around the mean face.
    start: Uri | None = None
    # Which variant of the losses: the paper's text or the released code (docs/train.md lists the differences).
    recipe: Literal["paper", "release"] = "paper"
    # Weights of single losses in place of the recipe's, by stage and name, as in {"coarse": {"identity": 0}}.
    weights: dict[StageName, dict[str, float]] = Field(default_factory=dict)

    # Defaults: the preset's.
    pretrain: StageConfig
    coarse: StageConfig
    detail: StageConfig

    networks: NetworksConfig = NetworksConfig()
    # Pixels on a side of the patch that ID-MRF sees. None: the recipe's. Its cost grows with the fourth power.
    mrf_size: int | None = Field(default=None, ge=32, le=512)
    # Seed of every random number: weights, order of subjects, crops, swaps.
    seed: int = Field(default=0, ge=0)
    # Arithmetic of the networks (losses and geometry are always fp32). auto: bf16 where the hardware is made for it.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # Batch norm of the trained encoders. train: statistics of each rank's own batch, as in the release; eval: the
    # running ones, frozen; sync: of all ranks together (GPU only).
    batch_norm: Literal["train", "eval", "sync"] = "train"
    # Smaller steps for the last layers of E_c and F_d, whose weights for camera and wrinkles are small: Adam's steps
    # are as large as the step size whatever the gradient. Default False, as in the release; a short training with its
    # larger step size needs it.
    slow_ends: bool = False
    # Largest gradient norm; a larger one is scaled down. Default 10: far above a normal step, stops divergence.
    clip_norm: float | None = Field(default=10.0, gt=0)
    # Decay of the running mean of the weights, which is what is validated and shipped. None: the weights themselves.
    ema: float | None = Field(default=0.999, gt=0, lt=1)

    # Steps between checkpoints, each with a validation. Default 1000: some ten minutes of a GPU.
    checkpoint_every: int = Field(default=1000, ge=1)
    # Checkpoints kept of a stage: the last ones, and those with the smallest validation loss.
    keep_last: int = Field(default=2, ge=1)
    keep_best: int = Field(default=1, ge=0)
    # Validation batches at each checkpoint, always the same ones.
    validation_batches: int = Field(default=4, ge=0)
    # Steps between lines of the metrics.
    log_every: int = Field(default=10, ge=1)

    # What to do with a run in DEST: resume if the settings are the same and refuse others, naming the difference
    # (refuse); resume with the stored settings (resume); drop it (new).
    existing: Literal["refuse", "resume", "new"] = "refuse"
    ray: TrainRayConfig = TrainRayConfig()

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = PRESETS.get(values.get("preset", "paper"), {})  # the field itself refuses an unknown name
        return merged(preset, values)

    @model_validator(mode="after")
    def _has_steps(self) -> TrainConfig:
        if not any(self.stage(name).steps for name in STAGES):
            raise ValueError(f"nothing to train: {', '.join(f'{name}.steps' for name in STAGES)} are all 0")
        return self

    def stage(self, name: StageName) -> StageConfig:
        config: StageConfig = getattr(self, name)
        return config

    def plan_config(self) -> dict[str, Any]:
        """Return the settings that decide what is learnt."""
        names = {"dest", "preset", "version", "existing", "ray", "keep_last", "keep_best"}
        return self.model_dump(mode="json", exclude=names)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, merged group by group; `over` wins."""
    both = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], Mapping) and isinstance(over[name], Mapping):
            both[name] = merged(base[name], over[name])
    return both


class TrainPlan(BaseModel):
    """`_train.json`: what this run is; a run with another fingerprint is refused in the same place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    config: dict[str, Any]  # plan_config
    inputs: dict[str, str]  # name -> hash of bundle, data, start weights and pretrained loss networks
    fingerprint: str


class CheckpointRecord(BaseModel):
    """`checkpoints/<stage>/00000200.json`: commits the files of a checkpoint; without it they are ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    plan: TrainPlan
    stage: StageName
    step: int  # optimiser steps done
    data: dict[str, Any]  # position in the data, `Samples.state_dict`
    ranks: int
    files: list[StoredFile]
    validation: dict[str, float]
    code: str


class StageRecord(BaseModel):
    """`_stages/<stage>.json`: the stage is finished; this is its result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    stage: StageName
    steps: int
    checkpoint: str  # name of its last checkpoint's record
    validation: dict[str, float]


class TrainSummary(BaseModel):
    """What a run did: `_report/summary.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    outcome: Literal["complete", "partial"]
    dest: str
    model: str | None  # checkpoint folder for `deca reconstruct --checkpoint`
    bundle: str | None = None  # that goes with it; None: the procedural head
    stages: dict[str, dict[str, float]]  # finished stages: steps and validation
    stages_run: list[str]  # by this run
    seconds: dict[str, float]  # by stage, of this run
    images_per_second: dict[str, float]
    data_wait_share: dict[str, float]  # of the training time, waiting for images
    networks: dict[str, str]
    fingerprint: str
    code: str
