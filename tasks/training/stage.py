"""One stage of training on one rank: batches in, checkpoints out; the same state and seed give the same next step.

Everything random in a step comes from `step_seed`, so a killed run resumes exactly from its last checkpoint.
`tasks.training.ranks` runs it on Ray Train or in this process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deca_core.detail import START
from deca_core.errors import DecaError
from deca_core.metrics import normalized_mean_error
from deca_core.training import FaceBatch, predicted_landmarks
from schemas.progress import OnTrainProgress, Timing, TrainProgress
from schemas.train import CheckpointRecord, StageName, TrainConfig, TrainPlan
from tasks.store.storage import Store
from tasks.training.board import publish_events
from tasks.training.checkpoints import (
    Tensors,
    TrainState,
    optimizer_tensors,
    prune,
    publish_state,
    read_state,
    restore_optimizer,
)
from tasks.training.inputs import (
    arithmetic,
    first_model,
    make_step,
    start_backbones,
    training_samples,
    validation_samples,
)
from tasks.training.records import list_checkpoints
from tasks.training.validation_sheet import draw_sheet

METRICS, FAILED = "metrics", "_failed"
DIVERGED_AFTER = 20  # consecutive diverging steps: no finite gradient, or a loss far above the median
DIVERGING = 10.0  # times the median loss of the last normal steps
MEDIAN_STEPS = 100  # normal steps in the median; until there are as many, a finite step is never diverging
CODES_SHARE = 0.1  # of the step size, for the last layer of E_c under `slow_ends`; for F_d's it is START
FINAL_LR = 0.01  # share of the step size at the end of a cosine schedule

logger = logging.getLogger("deca")


class TrainError(DecaError):
    """Training that cannot continue: it diverges, or ranks keep dying."""


@dataclass(frozen=True)
class StageJob:
    """The job of a stage for every rank; small and picklable."""

    dest: str
    config: TrainConfig
    plan: TrainPlan
    stage: StageName
    before: CheckpointRecord | None = None  # last checkpoint of the stage before


def step_seed(seed: int, stage: StageName, step: int, rank: int) -> int:
    """Seed of all random numbers of one step on one rank."""
    words = [seed, int.from_bytes(stage.encode(), "little"), step, rank]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def learning_rate(config: TrainConfig, stage: StageName, step: int) -> float:
    """Step size of Adam at a step: linear warm-up, then constant or half a cosine down to a hundredth."""
    settings = config.stage(stage)
    rise = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "constant":
        return settings.lr * rise
    done = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * rise * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * done)) / 2)


class StageRun:
    """One rank's model, optimiser and data in one stage."""

    def __init__(self, job: StageJob, rank: int = 0, ranks: int = 1) -> None:
        self.job, self.config, self.stage, self.rank, self.ranks = job, job.config, job.stage, rank, ranks
        self.settings, self.store = job.config.stage(job.stage), Store(job.dest)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = arithmetic(self.settings.precision or job.config.precision, self.device)
        self.model = first_model(job.config)
        self.step: nn.Module = make_step(job.config, job.stage, self.model, ranks)
        self.step.to(self.device)
        for network in (self.model.E_flame, self.model.E_detail, self.model.D_detail):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if job.config.batch_norm == "sync":
            self.step = nn.SyncBatchNorm.convert_sync_batchnorm(self.step)
        self.named = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.Adam(self._groups(), lr=self.settings.lr)
        self.mean: Tensors = {}
        self.done, self.diverging = 0, 0
        self.losses: deque[float] = deque(maxlen=MEDIAN_STEPS)  # of normal steps
        self.batch: FaceBatch | None = None  # the last one, stored where training diverges
        self.data = training_samples(job.config, job.stage, rank, ranks)
        self.resume()
        if job.config.ema is not None and not self.mean:
            self.mean = {name: value.detach().clone() for name, value in self.named.items()}
        # Buffers are the bundle's arrays, equal on all ranks: nothing to broadcast.
        self.forward = DistributedDataParallel(self.step, forward_sync_buffers=False) if ranks > 1 else self.step

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by their share of the step size, see `slow_ends`."""
        ends: list[tuple[nn.Module, float]] = []
        if self.config.slow_ends:
            ends = [(self.model.E_flame.layers[-1], CODES_SHARE), (self.model.D_detail.last, START)]
        shares = {id(value): share for layer, share in ends for value in layer.parameters()}
        by_share: dict[float, list[nn.Parameter]] = {}
        for value in self.named.values():
            by_share.setdefault(shares.get(id(value), 1.0), []).append(value)
        return [{"params": values, "share": share} for share, values in by_share.items()]

    def resume(self) -> None:
        """Load the last checkpoint of this stage, else the result of the stage before."""
        records = list_checkpoints(self.store, self.stage)
        if records:
            state = read_state(self.store, records[-1])
            self.model.load_state_dict(state.weights)
            self.mean = {name: value.to(self.device) for name, value in state.mean.items()}
            restore_optimizer(self.optimizer, self.named, state.optimizer)
            self.data.load_state_dict(state.data)
            self.done = state.step
            logger.info("%s resumes from step %d", self.stage, self.done)
        elif self.job.before is not None:
            state = read_state(self.store, self.job.before)
            self.model.load_state_dict({**state.weights, **state.mean})
        else:
            start_backbones(self.model, self.config, self.stage)

    def run(self, on_progress: OnTrainProgress | None = None) -> None:
        """Train to the end of the stage; a checkpoint every `checkpoint_every` steps and one at the end."""
        timing, metrics, batches = Timing(), list[dict[str, Any]](), self._batches()
        if self.rank == 0:
            self._prune()  # a killed run may have left some
        if self.done == 0 and self.rank == 0:
            with self._mean_weights():
                metrics.append({"step": 0, "validation": self._validate()})
        begun = time.perf_counter()
        while self.done < self.settings.steps:
            terms = self._optimise(batches)
            self.done += 1
            timing.steps += 1
            timing.images += self.settings.subjects * self.settings.images
            timing.seconds, timing.waited = time.perf_counter() - begun, self.data.waiting.seconds
            last = self.done == self.settings.steps
            if last or self.done % self.config.log_every == 0:
                losses = self._over_ranks(terms)
                lr = learning_rate(self.config, self.stage, self.done - 1)
                metrics.append({"step": self.done, "lr": lr, **losses})
                if on_progress:
                    on_progress(TrainProgress(self.stage, self.done, self.settings.steps, losses, timing))
            if last or self.done % self.config.checkpoint_every == 0:
                self._checkpoint(metrics)
                metrics = []

    def _batches(self) -> Iterator[FaceBatch]:
        """Endless batches, epoch after epoch."""
        while True:
            yield from self.data

    def _optimise(self, batches: Iterator[FaceBatch]) -> dict[str, Tensor]:
        """Take one step of Adam, skipped where the gradient is not finite; returns loss terms and gradient norm."""
        seed = step_seed(self.config.seed, self.stage, self.done, self.rank)
        torch.manual_seed(seed)
        swaps = torch.Generator().manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(self.config, self.stage, self.done)
        self.optimizer.zero_grad(set_to_none=True)
        self._train_mode()
        parts: list[dict[str, Tensor]] = []
        for part in range(self.settings.accumulate):
            self.batch = batch = next(batches).to(self.device, non_blocking=True)
            final = part == self.settings.accumulate - 1
            module = self.forward
            # Ranks exchange gradients once, with the last part.
            hold: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if isinstance(module, DistributedDataParallel) and not final:
                hold = module.no_sync()
            with hold:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    output = module(batch, swaps)
                (output.loss / self.settings.accumulate).backward()
            parts.append({"total": output.loss.detach(), **output.terms})
        length = nn.utils.clip_grad_norm_(self.named.values(), self.config.clip_norm or math.inf)
        self._take_step(length)
        terms = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]} | {"gradient": length}
        self._watch(terms)
        return terms

    def _over_ranks(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Mean terms over all ranks."""
        values = torch.stack([value.float() for value in terms.values()])
        if self.ranks > 1:
            distributed.all_reduce(values)
            values /= self.ranks
        return dict(zip(terms, values.tolist(), strict=True))

    def _train_mode(self) -> None:
        self.step.train()
        if self.config.batch_norm == "eval":
            for module in self.step.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _watch(self, terms: dict[str, Tensor]) -> None:
        """Raise TrainError after DIVERGED_AFTER consecutive diverging steps."""
        loss = float(terms["total"])
        finite = math.isfinite(loss) and math.isfinite(float(terms["gradient"]))
        if finite and (len(self.losses) < MEDIAN_STEPS or loss <= DIVERGING * float(np.median(self.losses))):
            self.diverging = 0
            self.losses.append(loss)
            return
        self.diverging += 1
        if self.diverging < DIVERGED_AFTER:
            return
        said = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        usual = f"usually {np.median(self.losses):.4g}" if self.losses else "from the first step on"
        raise TrainError(
            f"{self.stage} diverges: {self.diverging} steps in a row without a finite gradient or with a loss more "
            f"than {DIVERGING:.0f} times the median, {usual}. Step {self.done}: {said}. "
            f"Its batch is {self._save_batch()}. Run with --resume from the last checkpoint, or --new with a smaller lr"
        )

    def _take_step(self, length: Tensor) -> None:
        """Step Adam and the EMA, unless the gradient is not finite."""
        if not bool(length.isfinite()):
            return
        self.optimizer.step()
        if self.mean and self.config.ema is not None:
            # A young mean forgets faster, or the first weights would dominate it in a short run.
            decay = min(self.config.ema, (1 + self.done) / (10 + self.done))
            with torch.no_grad():
                torch._foreach_lerp_([self.mean[name] for name in self.named], list(self.named.values()), 1 - decay)

    def _save_batch(self) -> str:
        """Store the last batch; returns its URI."""
        assert self.batch is not None
        name = f"{FAILED}/{self.stage}-{self.done:08d}-{self.rank}.safetensors"
        tensors = {key: getattr(self.batch, key) for key in ("images", "landmarks", "masks", "subjects")}
        self.store.write(name, save({key: value.cpu().contiguous() for key, value in tensors.items()}))
        return self.store.join(name)

    def _checkpoint(self, metrics: list[dict[str, Any]]) -> None:
        """Validate and publish on rank 0; the others wait, so that none runs ahead of the stored state."""
        if self.rank == 0:
            with self._mean_weights():
                validation = self._validate()
                sheet = draw_sheet(self.model, self.config, self.stage) if self.config.validation_batches else None
            rows = [*metrics, {"step": self.done, "validation": validation}]
            publish_events(self.store, self.stage, self.done, rows, sheet)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            self.store.write(f"{METRICS}/{self.stage}/{self.done:08d}.jsonl", lines.encode())
            state = TrainState(
                weights=dict(self.model.state_dict()),
                mean=self.mean,
                optimizer=optimizer_tensors(self.optimizer, self.named),
                step=self.done,
                data=self.data.state_dict(),
            )
            publish_state(self.store, self.job.plan, self.stage, self.ranks, state, validation)
            self._prune()
        if self.ranks > 1:
            distributed.barrier()

    def _prune(self) -> None:
        prune(self.store, self.stage, self.config.keep_last, self.config.keep_best)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean loss terms over the validation batches without swapped shapes, and `nme`, the normalised mean landmark
        error of E_c.
        """
        if not self.config.validation_batches:
            return {}
        found: list[dict[str, float]] = []
        for batch in itertools.islice(validation_samples(self.config, self.stage), self.config.validation_batches):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                batch = batch.to(self.device)
                output, points = self.step(batch), predicted_landmarks(self.model, batch.images)
            error = normalized_mean_error(batch.landmarks[..., :2], points).mean()
            terms = {"total": output.loss, "nme": error, **output.terms}
            found.append({name: float(value) for name, value in terms.items()})
        means = {name: float(np.mean([terms[name] for terms in found])) for name in found[0]} if found else {}
        return {name: value for name, value in means.items() if math.isfinite(value)}  # JSON has no NaN

    @contextlib.contextmanager
    def _mean_weights(self) -> Iterator[None]:
        """Use the EMA in place of the trained weights, in eval mode, inside the block."""
        self.step.eval()
        trained = {name: value.detach().clone() for name, value in self.named.items()}
        self._put(self.mean or trained)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, values: Tensors) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(values[name])
