"""Event files for TensorBoard: one a checkpoint, written atomically to any storage.

tensorboard --logdir DEST/tensorboard
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.train import StageName
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store

BOARD = "tensorboard"


def publish_events(
    store: Store, stage: StageName, step: int, rows: list[dict[str, Any]], sheet: NDArray[np.uint8] | None
) -> None:
    """Write the scalars of metrics rows, and a sheet (H,W,3) of validation faces at a checkpoint's step.

    The file's name holds the step: a repeated checkpoint replaces its file, and names sort as TensorBoard reads them.
    """
    from torch.utils.tensorboard import SummaryWriter

    with temp_folder("events") as folder:
        with SummaryWriter(str(folder)) as writer:
            for row in rows:
                groups = {"train": row, "validation": row.get("validation", {})}
                for group, values in groups.items():
                    for name, value in values.items():
                        if name not in ("step", "validation"):
                            writer.add_scalar(f"{group}/{name}", value, row["step"])
            if sheet is not None:
                writer.add_image("faces", sheet, step, dataformats="HWC")
        (written,) = folder.iterdir()
        store.write(f"{BOARD}/{stage}/events.out.tfevents.{step:08d}", written.read_bytes())
