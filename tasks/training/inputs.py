"""Inputs of a training stage: first weights, losses, pretrained loss networks, batches; and the hashes of all."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from deca_core import DECA
from deca_core.augment import PLAIN, Augmentation
from deca_core.camera import fit_camera
from deca_core.checkpoint import checkpoint_hash, load_checkpoint
from deca_core.codes import COARSE_LENGTHS
from deca_core.dlib_recognition import load_dlib
from deca_core.dlib_resnet import DlibBackbone
from deca_core.encoder import DLIB
from deca_core.errors import DecaError
from deca_core.flame import FLAME
from deca_core.losses import CoarseWeights, DetailWeights, recipe
from deca_core.losses.fits import FITTED
from deca_core.losses.recipe import SUMMED
from deca_core.perceptual import VGG19, PerceptualError, imagenet_vgg19, load_vgg19, random_vgg19
from deca_core.recognition import Recognition, load_vggface2, random_recognition
from deca_core.training import CoarseStep, DetailStep
from schemas.faces import Split
from schemas.train import STAGES, NetworksConfig, StageName, TrainConfig, WorldConfig
from tasks.models.loading import bundle_at, checkpoint_folder, local_file
from tasks.training.arcface import load_arcface
from tasks.training.datasets import ShardSource, Source, WorldSource
from tasks.training.fits import FittedSource
from tasks.training.mirror import MirroredSource
from tasks.training.order import BatchPlan
from tasks.training.samples import Samples

WORLD = "world"  # the source without a dataset
START_IMAGES = 256  # that the initial dlib backbone is fitted to
SOLVED_IMAGES = 6000  # of the least-squares start of E_c
SOLVED_RIDGE = 0.3  # best of 0.1 to 3 on held-out subjects
NETWORK_SEED = 0  # of random loss networks: equal in all runs, so that losses compare

logger = logging.getLogger("deca")


class TrainConfigError(DecaError):
    """Settings of a stage that cannot be met; names them and a remedy."""


# --- the model and its first weights ----------------------------------------------------------------------------------


def first_model(config: TrainConfig) -> DECA:
    """The initial model: `start`, or random weights around the mean face. Raises CheckpointError."""
    bundle = bundle_at(config.bundle)
    if config.start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return DECA(bundle, config.backbone)
    model = load_checkpoint(checkpoint_folder(config.start), bundle)
    if model.backbone != config.backbone:
        raise TrainConfigError(
            f"{config.start} has the backbone {model.backbone}, the run asks for {config.backbone}. Run again with "
            f"--set backbone={model.backbone}"
        )
    return model


def start_backbones(model: DECA, config: TrainConfig, stage: StageName) -> None:
    """Initialise dlib backbones with dlib's weights, fitted to the first images of the stage; others stay unchanged.

    Raises RecognitionError where the weights are missing.
    """
    if config.backbone != DLIB or config.start is not None:
        return
    trained, samples = load_dlib().resnet, training_samples(config, stage)
    plan = samples.plan
    images = torch.cat(
        [batch.images for batch in itertools.islice(samples, -(-START_IMAGES // (plan.subjects * plan.images)))]
    ).to(model.mask.device)
    for encoder in (model.E_flame.encoder, model.E_detail.encoder):
        assert isinstance(encoder, DlibBackbone)
        encoder.start_from(trained, images)
    if samples.source.fitted:
        samples.seek(0, 0)
        start_codes(model, samples, arithmetic(config.stage(stage).precision or config.precision, model.mask.device))


@torch.no_grad()
def start_codes(model: DECA, samples: Samples, precision: Literal["fp32", "bf16"]) -> None:
    """Initialise the last layer of E_c by ridge regression on landmark fits (shape, expression, pose) and camera.

    One linear system in place of thousands of steps.
    """
    features, targets, device = list[Tensor](), list[Tensor](), model.mask.device
    count = -(-SOLVED_IMAGES // (samples.plan.subjects * samples.plan.images))
    for batch in itertools.islice(samples, count):
        batch = batch.to(device)
        assert batch.fits is not None
        known = batch.fits.isfinite().all(1)
        fits, landmarks = batch.fits[known], batch.landmarks[known, :, :2]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            features.append(model.E_flame.encoder(batch.images[known]).float())
        head = model.flame(*fits.split([COARSE_LENGTHS[name] for name in FITTED], dim=1))
        targets.append(torch.cat([fits, fit_camera(head.landmarks2d, landmarks)], dim=1))
    names = [name for name, length in COARSE_LENGTHS.items() for _ in range(length)]
    outputs = [place for name in (*FITTED, "cam") for place, at in enumerate(names) if at == name]
    model.E_flame.start_linear(torch.cat(features), torch.cat(targets), torch.tensor(outputs), SOLVED_RIDGE)


def arithmetic(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision of the networks; auto: bf16 on hardware with instructions for it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


# --- losses -----------------------------------------------------------------------------------------------------------


def make_step(config: TrainConfig, stage: StageName, model: DECA, ranks: int) -> CoarseStep | DetailStep:
    """The losses of a stage over `model`, with its pretrained loss networks."""
    weights = stage_weights(config, stage)
    # Gradients are averaged over ranks and parts of a batch; losses that are sums over the batch must not be.
    parts = ranks * config.stage(stage).accumulate
    weights = replace(weights, **{name: getattr(weights, name) * parts for name in SUMMED if hasattr(weights, name)})
    if isinstance(weights, DetailWeights):
        return DetailStep(model, weights, perceptual_network(config.networks, tuple(weights.mrf_layers)))
    return CoarseStep(model, weights, identity_network(config.networks) if weights.identity else None)


def stage_weights(config: TrainConfig, stage: StageName) -> CoarseWeights | DetailWeights:
    """Loss weights of the recipe, overridden by the config. Raises TrainConfigError for an unknown loss."""
    weights: CoarseWeights | DetailWeights = getattr(recipe(config.recipe), stage)
    own = config.weights.get(stage, {})
    known = {name for name, value in vars(weights).items() if isinstance(value, int | float)}
    if unknown := sorted(set(own) - known):
        raise TrainConfigError(
            f"weights.{stage}: no loss named {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    if isinstance(weights, DetailWeights) and config.mrf_size is not None:
        weights = replace(weights, mrf_size=config.mrf_size)
    typed = {name: type(getattr(weights, name))(value) for name, value in own.items()}
    return replace(weights, **typed)


@cache
def identity_network(config: NetworksConfig) -> Recognition:
    """The network of the identity loss. Raises RecognitionError or StorageError where its weights are missing."""
    kind, weights = config.identity, config.identity_weights
    if kind == "auto":
        kind = "dlib" if weights is None else "vggface2"
    if kind == "dlib":
        return load_dlib(None if weights is None else local_file(weights))
    if kind == "random":
        logger.warning("identity loss: the network has RANDOM weights; it compares colours, not identities")
        return random_recognition(NETWORK_SEED)
    if weights is None:
        raise TrainConfigError(f"networks.identity is {kind}, which needs networks.identity_weights")
    return load_vggface2(local_file(weights)) if kind == "vggface2" else load_arcface(local_file(weights).parent)


@cache
def perceptual_network(config: NetworksConfig, layers: tuple[str, ...]) -> VGG19:
    """The network of ID-MRF. Raises PerceptualError or StorageError where its weights are missing."""
    if config.perceptual_weights is not None:
        return load_vgg19(local_file(config.perceptual_weights), layers)
    if config.perceptual != "random":
        try:
            return imagenet_vgg19(layers)
        except PerceptualError as error:
            if config.perceptual == "vgg19":
                raise
            logger.warning("ID-MRF: %s", error)
    logger.warning("ID-MRF: the VGG19 has RANDOM weights; give networks.perceptual_weights")
    return random_vgg19(layers, NETWORK_SEED)


# --- batches ----------------------------------------------------------------------------------------------------------


def training_samples(config: TrainConfig, stage: StageName, rank: int = 0, ranks: int = 1) -> Samples:
    """Augmented batches of one rank. Raises TrainConfigError where ranks do not divide the batch."""
    settings = config.stage(stage)
    subjects, rest = divmod(settings.subjects, settings.accumulate * ranks)
    if rest:
        raise TrainConfigError(
            f"{stage}.subjects {settings.subjects} cannot be cut into {settings.accumulate} parts for each of {ranks} "
            f"ranks. Ask for a multiple of {settings.accumulate * ranks}"
        )
    seed = config.seed * len(STAGES) + STAGES.index(stage)  # a different order in every stage
    plan = BatchPlan(subjects, settings.images, seed, rank, ranks)
    return Samples(_source(config, stage, "train"), plan, Augmentation(scale=config.data.crop_scale), config.data)


def validation_samples(config: TrainConfig, stage: StageName) -> Samples:
    """The same batches at every call, of held-out subjects, in the crop of inference."""
    settings = config.stage(stage)
    plan = BatchPlan(max(1, settings.subjects // settings.accumulate), settings.images)
    few = config.data.model_copy(update={"few_pictures": "repeat"})
    return Samples(_source(config, stage, "val"), plan, PLAIN, few)


def _source(config: TrainConfig, stage: StageName, split: Split) -> Source:
    """The faces of a split, with landmark fits where a loss of the stage needs them."""
    weights = stage_weights(config, stage)
    fitted = isinstance(weights, CoarseWeights) and weights.fit > 0
    mirror = config.data.mirror and split == "train"
    if config.source == WORLD:
        return _world_samples(config.bundle, config.world, split, mirror, fitted)
    source: Source = ShardSource(config.source, split, config.version)
    return _prepared(source, config.bundle, mirror, fitted)


def _prepared(source: Source, bundle: str | None, mirror: bool, fitted: bool) -> Source:
    source = MirroredSource(source) if mirror else source
    return FittedSource(source, FLAME(bundle_at(bundle))) if fitted else source


@cache
def _world_samples(bundle: str | None, world: WorldConfig, split: Split, mirror: bool, fitted: bool) -> Source:
    """Cached, so that photographs and fits are made once."""
    return _prepared(_world(bundle, world, split), bundle, mirror, fitted)


@cache
def _world(bundle: str | None, world: WorldConfig, split: Split) -> WorldSource:
    """The subjects of a split, whose photographs are made once a process, for all stages and validations."""
    people, first = (world.people, 0) if split == "train" else (world.val_people, world.people)
    return WorldSource(bundle_at(bundle), world.seed, people, world.images, first)


# --- hashes -----------------------------------------------------------------------------------------------------------


def input_hashes(config: TrainConfig) -> dict[str, str]:
    """Hashes of a run's inputs by name: bundle, data, start weights, pretrained loss networks."""
    found = {"bundle": bundle_at(config.bundle).hash, "start": "random"}
    if config.backbone == DLIB:
        found["start"] = load_dlib().name
    if config.start is not None:
        found["start"] = checkpoint_hash(checkpoint_folder(config.start))
    for stage in (stage for stage in STAGES if config.stage(stage).steps):
        weights = stage_weights(config, stage)
        if isinstance(weights, DetailWeights):
            found["perceptual"] = perceptual_network(config.networks, tuple(weights.mrf_layers)).name
        elif weights.identity:
            found["identity"] = identity_network(config.networks).name
        found["data"] = training_samples(config, stage).source.fingerprint
    return found
