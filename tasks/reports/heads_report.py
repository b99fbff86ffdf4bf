"""The report on a reconstructions/ dataset: a page for readers, and the README.md that Hugging Face `datasets` reads.

The page is one file that loads nothing: images, charts, the viewer's library and its data stand inside, and its
content security policy names the two scripts by hash and allows no connection.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from markupsafe import Markup

from schemas.columns import meaning, type_in_words
from schemas.reconstruct import LANDMARK_FIT, UNTRAINED, ReconstructConfig
from tasks.draw.pages import page_templates
from tasks.reports.contact_sheet import samples
from tasks.reports.figures import Cost, cost_charts, cost_of, read_ledger, spread_of
from tasks.reports.gallery import Gallery, Sculptor, make_gallery
from tasks.reports.viewer import as_json, library, viewer_data
from tasks.store.storage import Store
from tasks.units.commits import read_parts
from tasks.units.plan import Plan, PlanError
from tasks.units.reasons import Reason, quarantine_reasons

PAGE, README = "_report/report.html", "README.md"
VIEWED = 6  # of them, with a head to turn: 150 kB each
PARTS_BY_NAME = 1000  # above, the README names the parts by a pattern

_templates = page_templates(Path(__file__).parent)


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: str  # URI
    readme: str
    faces: int  # in the gallery
    notes: list[str]  # what is missing from it, and why


def write_report(plan: Plan, config: ReconstructConfig, faces: int) -> Report:
    """Write the page and the card of a plan's reconstructions in their current state, complete or not.

    config: the settings that lie beside the dataset. faces: sampled ones that are shown. Raises PlanError where no
    face was reconstructed yet, StorageError.
    """
    ledger = read_ledger(plan)
    cost = cost_of(ledger)
    if not cost.faces:
        raise PlanError(f"nothing to report on: {plan.dest} holds no face yet. Look at: deca status {plan.dest}")
    rows = list(samples(plan, faces))
    sculptor = Sculptor(plan, config)
    gallery = make_gallery(sculptor, rows, config)
    data = viewer_data(sculptor.model, gallery.faces[:VIEWED]) if sculptor.model is not None else None
    reasons = quarantine_reasons(plan)
    store = Store(plan.dest)
    store.write(PAGE, _page(plan, config, ledger, cost, reasons, gallery, data).encode())
    card = _card(plan, config, len(ledger), cost, reasons, [field for field in rows[0].row.schema])
    store.write(README, card.encode())
    return Report(store.join(PAGE), store.join(README), len(gallery.faces), gallery.notes)


def _page(
    plan: Plan,
    config: ReconstructConfig,
    ledger: pa.Table,
    cost: Cost,
    reasons: list[Reason],
    gallery: Gallery,
    data: dict[str, Any] | None,
) -> str:
    spread = spread_of(plan)
    scripts = [] if data is None else [library(), _templates.get_template("viewer.js.j2").render()]
    return _templates.get_template("heads_report.html.j2").render(
        plan=plan,
        facts=_facts(plan, len(ledger), cost, reasons),
        warnings=_warnings(plan),
        partial=_partial(plan, len(ledger), reasons),
        gallery=gallery,
        viewer=None if data is None else Markup(as_json(data)),  # no "<" is left in it
        scripts=[Markup(script) for script in scripts],
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'",
        spread=spread,
        charts=[Markup(chart) for chart in spread.charts],  # matplotlib escapes what it writes
        cost=cost,
        cost_charts=[Markup(chart) for chart in cost_charts(ledger, cost)],
        reasons=reasons,
        settings=_settings(plan, config),
        weights=plan.record.weights,
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(plan: Plan, units: int, cost: Cost, reasons: list[Reason]) -> list[tuple[str, str]]:
    return [
        ("images planned", f"{plan.inputs.items:,}"),
        ("faces", f"{cost.faces:,}"),
        ("rows in quarantine", f"{sum(reason.rows for reason in reasons):,}"),
        ("units done", f"{units:,} of {plan.units:,}"),
        ("megabytes", f"{cost.bytes / 1e6:,.1f}"),
        ("kilobytes a face", f"{cost.bytes_a_face / 1e3:,.1f}"),
        ("worker seconds a face", f"{cost.seconds_a_face:.3g}"),
        ("worker hours a million faces", f"{cost.seconds_a_face * 1e6 / 3600:,.0f}"),
    ]


def _warnings(plan: Plan) -> list[str]:
    """Return warnings on the weights behind the numbers."""
    checkpoint = plan.record.weights.get("checkpoint", "")
    if checkpoint.startswith(UNTRAINED):
        return ["UNTRAINED NETWORK: shape, detail and displacement mean nothing."]
    if checkpoint == LANDMARK_FIT:
        return ["Fitted to landmarks without a network: no albedo, no light, no detail."]
    return []


def _partial(plan: Plan, units: int, reasons: list[Reason]) -> str:
    """Return what is missing from the dataset; empty where it is complete."""
    pending, failed = plan.units - units, sum(reason.rows for reason in reasons)
    if not pending and not failed:
        return ""
    return f"Partial: units pending {pending:,}, rows in quarantine {failed:,}. Page and card are over the rest."


def _settings(plan: Plan, config: ReconstructConfig) -> str:
    """Return the config of the dataset as YAML."""
    values = config.model_dump(mode="json", exclude={"ray", "existing", "contact_sheet_rows", "source", "dest"})
    return yaml.safe_dump({"source": plan.record.source, "code": plan.record.code, **values}, sort_keys=False)


def _card(
    plan: Plan,
    config: ReconstructConfig,
    units: int,
    cost: Cost,
    reasons: list[Reason],
    fields: list[Any],
) -> str:
    """README.md: what the dataset is on one page, and for `load_dataset` which files belong to it."""
    parts = [part.file for part in read_parts(plan) if part.rows]
    front: dict[str, Any] = {
        "pretty_name": "Reconstructed heads",
        "license": "other",
        "tags": ["faces", "3d"],
        "configs": [
            {"config_name": "default", "data_files": parts if len(parts) <= PARTS_BY_NAME else "part-*.parquet"}
        ],
    }
    return _templates.get_template("heads_card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False),
        plan=plan,
        facts=_facts(plan, units, cost, reasons),
        warnings=_warnings(plan),
        partial=_partial(plan, units, reasons),
        columns=[(field.name, type_in_words(field), meaning("reconstructions", field.name)) for field in fields],
        settings=_settings(plan, config),
        weights=plan.record.weights,
    )
