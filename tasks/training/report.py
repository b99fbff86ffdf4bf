"""Figures of a training run: loss curves, and a sheet of validation faces for every stage."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from schemas.train import STAGES, StageName, TrainConfig
from tasks.store.storage import Store
from tasks.training.checkpoints import read_state
from tasks.training.inputs import first_model
from tasks.training.records import checkpoint_at
from tasks.training.stage import METRICS
from tasks.training.validation_sheet import draw_sheet

REPORT = "_report"
CURVES, SHEETS = f"{REPORT}/curves.png", REPORT + "/pictures-{stage}.png"


def read_metrics(store: Store, stage: StageName) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """(logged steps of a stage with step, lr, gradient, total and loss terms; validations), both in order."""
    names = store.list(f"{METRICS}/{stage}")
    rows = [json.loads(line) for name in names for line in store.read(name).decode().splitlines()]
    validations = [{"step": row["step"], **row["validation"]} for row in rows if row.get("validation")]
    return [row for row in rows if "validation" not in row], validations


def draw_curves(config: TrainConfig) -> None:
    """Write the loss curves: a panel a stage, every term over the steps, with the validation's total and NME."""
    from matplotlib.figure import Figure

    store = Store(config.dest)
    stages = [stage for stage in STAGES if config.stage(stage).steps]
    figure = Figure(figsize=(6 * len(stages), 4.5), layout="constrained")
    for axes, stage in zip(np.atleast_1d(figure.subplots(1, len(stages))), stages, strict=True):
        rows, validated = read_metrics(store, stage)
        steps = [row["step"] for row in rows]
        for term in sorted({name for row in rows for name in row} - {"step", "lr", "gradient"}):
            values = [row.get(term, np.nan) for row in rows]
            axes.plot(steps, values, label=term, linewidth=2 if term == "total" else 1)
        for term, marker in (("total", "k*"), ("nme", "k+")):
            values = [row.get(term, np.nan) for row in validated]
            axes.plot(
                [row["step"] for row in validated], values, f"{marker}--", label=f"validation, {term}", linewidth=1
            )
        axes.set(title=stage, xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    store.write(CURVES, buffer.getvalue())


def draw_sheets(config: TrainConfig) -> None:
    """Write a sheet a stage: validation faces with landmarks, rendering, shape, detail and displacement."""
    store = Store(config.dest)
    model = first_model(config)
    for stage in STAGES:
        if not config.stage(stage).steps:
            continue
        state = read_state(store, checkpoint_at(store, stage, config.stage(stage).steps))
        model.load_state_dict({**state.weights, **state.mean})
        sheet = draw_sheet(model.eval(), config, stage)
        if sheet is not None:
            buffer = io.BytesIO()
            Image.fromarray(sheet).save(buffer, "PNG")
            store.write(SHEETS.format(stage=stage), buffer.getvalue())
