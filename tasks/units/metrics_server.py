"""Metrics of a running flow for Prometheus, on http://HOST:PORT/metrics where DECA_METRICS_PORT is set.

The driver serves them: it sees every commit, so workers need no ports. Served from the first report of progress to the
end of the process; one process serves one flow at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.progress import TrainProgress, UnitProgress

VARIABLE = "DECA_METRICS_PORT"
HOST = "DECA_METRICS_HOST"  # default: every address, as scrapers sit on other machines

logger = logging.getLogger("deca")


class Exporter:
    """The metrics and their HTTP server; `prometheus_client` comes with Ray."""

    def __init__(self, port: int, host: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

        self.registry = CollectorRegistry()
        self.faces = Counter("deca_faces", "rows committed by this process", ["dataset"], registry=self.registry)
        self.rate = Gauge("deca_faces_per_second", "rows a second of this run", ["dataset"], registry=self.registry)
        self.queue = Gauge("deca_units_pending", "units without a commit", ["dataset"], registry=self.registry)
        self.quarantined = Counter(
            "deca_quarantined", "rows quarantined by this process", ["dataset", "stage"], registry=self.registry
        )
        self.busy = Gauge("deca_workers_busy_share", "of the workers' time, units", ["dataset"], registry=self.registry)
        self.step = Gauge("deca_train_step", "steps of the stage that are done", ["stage"], registry=self.registry)
        self.images = Gauge("deca_train_images_per_second", "of the last report", ["stage"], registry=self.registry)
        self.wait = Gauge("deca_train_data_wait_share", "of a step, for data", ["stage"], registry=self.registry)
        self.server, _ = start_http_server(port, addr=host, registry=self.registry)
        self.port: int = self.server.server_port
        logger.info("metrics on http://%s:%d/metrics", host, self.port)

    def units(self, dataset: str, progress: UnitProgress, rows: int, stages: dict[str, int]) -> None:
        """Update after a commit. rows, stages: of this unit alone."""
        self.faces.labels(dataset).inc(rows)
        for stage, count in stages.items():
            self.quarantined.labels(dataset, stage).inc(count)
        self.rate.labels(dataset).set(progress.rows_per_second)
        self.queue.labels(dataset).set(progress.units_total - progress.units_done)
        self.busy.labels(dataset).set(progress.busy_share)

    def training(self, progress: TrainProgress) -> None:
        """Update after a report of a training stage."""
        self.step.labels(progress.stage).set(progress.step)
        self.images.labels(progress.stage).set(progress.timing.images_per_second)
        self.wait.labels(progress.stage).set(progress.timing.data_wait_share)


def watched(on_progress: Callable[[TrainProgress], None] | None) -> Callable[[TrainProgress], None] | None:
    """Return an `on_progress` for training that also updates the exporter, if there is one."""
    served = exporter()
    if served is None:
        return on_progress

    def both(progress: TrainProgress) -> None:
        served.training(progress)
        if on_progress is not None:
            on_progress(progress)

    return both


@lru_cache(maxsize=1)
def exporter() -> Exporter | None:
    """Return the exporter of this process; None if not configured, or if its port is taken (which is logged)."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return Exporter(int(text), os.environ.get(HOST, "0.0.0.0"))
    except (OSError, ValueError) as error:
        logger.warning("no metrics: %s=%s: %s. Give a free port", VARIABLE, text, error)
        return None
