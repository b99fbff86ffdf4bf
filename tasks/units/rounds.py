"""Make plans and their later rounds: over new and changed inputs (extend), or over quarantined rows (retry)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from schemas.engine import SourceConfig, UnitsConfig
from schemas.ledger import Item, PlanRecord, Quarantined, RoundRecord, Unit, UnitFile
from schemas.results import result_version
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store
from tasks.units.commits import Row, pending, read_commits, replace_commit, row_of, standing_rows
from tasks.units.draft import (
    InputChanges,
    code_version,
    cut_units,
    differences,
    make_draft,
    same_plan,
    setting_differences,
    write_units,
)
from tasks.units.plan import (
    COMMITS,
    FILES,
    PART_NAME,
    PLAN,
    PLAN_FOLDER,
    QUARANTINE,
    Plan,
    PlanConflict,
    PlanError,
    ResultsConflict,
    load_plan,
    round_name,
)
from tasks.units.rewrite import drop_rows
from tasks.units.upgrade import outdated

SPLIT = 16  # a given-up unit is retried in sixteenths, so that the second round isolates the failing image

logger = logging.getLogger("deca")

Mode = Literal["auto", "resume", "extend", "new"]


# --- making a plan ----------------------------------------------------------------------------------------------------


def open_or_build(
    dest: str,
    source: str | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
    source_config: SourceConfig | None = None,
    units: UnitsConfig | None = None,
    items: Iterable[Item] | None = None,
    mode: Mode = "auto",
    workers: int | None = None,
    upgrade: bool = False,
) -> Plan:
    """Return the plan at `dest`: the stored one if it equals the request, else a new one.

    config: settings that influence results (nothing about Ray); weights: name -> hash of every model used;
    items: the plan's items where `source` is a name and not a place to list.
    mode: "auto" refuses a stored plan that differs (PlanConflict), "resume" takes it as it is without looking at the
    source, "extend" adds a round over new and changed inputs, "new" drops it and its results.
    workers: how many there will be, so that small archives are cut into units for all of them (`UnitsConfig.size_for`);
    None: units are as large as the setting says. A stored plan keeps its units whatever this is.
    upgrade: take a stored plan whose rows are of an earlier result version; `run_units` recomputes them.
    Raises SourceError, StorageError, PlanError.
    """
    store = Store(dest)
    if mode == "resume":
        stored = check_results(load_plan(dest), upgrade)
        return begin_upgrade(stored) if upgrade else stored
    if source is None:
        raise PlanError(f"a plan for {store.uri} needs a source; name one, or go on with --resume")
    store.check_writable()
    with temp_folder("plan") as folder:
        draft = make_draft(
            folder,
            source,
            config=config or {},
            weights=weights or {},
            source_config=source_config or SourceConfig(),
            units=units or UnitsConfig(),
            code=code_version(),
            items=items,
            skip=store.uri,
            workers=workers,
        )
        if mode == "new":
            drop_plan(dest)
        elif store.exists(PLAN):
            stored = check_results(load_plan(dest), upgrade)
            if mode == "extend":
                stored = _extend(stored, draft, folder, units or UnitsConfig(), workers)
            elif not same_plan(stored.inputs, draft):
                raise PlanConflict(store.uri, differences(stored.inputs, draft, store, folder, stored.replaced))
            stored = _note_left_out(stored, draft)
            return begin_upgrade(stored) if upgrade else stored
        _publish_draft(store, draft, folder)
    return load_plan(dest)


def _note_left_out(plan: Plan, draft: PlanRecord) -> Plan:
    """Store the images left out by the latest listing of the source in the plan's record; return the plan."""
    record = plan.record.model_copy(update={"images_left_out": draft.images_left_out})
    if record != plan.record:
        plan.store.write(PLAN, record.stored())
    return replace(plan, record=record)


def check_results(plan: Plan, upgrade: bool = False) -> Plan:
    """Return the plan if this program may add rows to it; with `upgrade` also if its rows are of an earlier version.

    Raises ResultsConflict where rows of two result versions would be mixed.
    """
    now, before = result_version(plan.record.config), plan.result_version
    if now < before or (now > before and not upgrade):
        raise ResultsConflict(plan, before, now)
    if not upgrade and (left := outdated(plan)):
        raise ResultsConflict(plan, min(left.values()), now)
    return plan


def begin_upgrade(plan: Plan) -> Plan:
    """Return the plan with an upgrade round to this program's result version, if its rows are of an earlier one."""
    now = result_version(plan.record.config)
    if plan.result_version == now:
        return plan
    with temp_folder("plan") as folder:
        return _publish_round(plan, [], folder, kind="upgrade", result_version=now)


def drop_plan(dest: str) -> None:
    """Delete a plan and its results at `dest`; the record first, so that no partial plan is valid. Tombstones stay."""
    store = Store(dest)
    store.delete(PLAN)
    store.delete_many(store.list(COMMITS))
    store.delete_many([name for name in store.list() if PART_NAME.fullmatch(name)])
    for folder in (QUARANTINE, PLAN_FOLDER):
        store.delete_many(store.list(folder))
    store.delete_folder(FILES)


def _publish_draft(store: Store, draft: PlanRecord, folder: Path) -> None:
    """Publish the item files, then the record; names carry the fingerprint, so two runs at once do not mix."""
    files = [_publish_units(store, folder, file, draft.fingerprint[:8]) for file in draft.files]
    record = draft.model_copy(update={"files": files})
    try:
        store.create(PLAN, record.stored())
    except FileExistsError as error:
        other = load_plan(store.uri)
        if not same_plan(other.record, draft):  # it may be cut for another number of workers
            raise PlanConflict(store.uri, ["another run planned here at the same moment"]) from error


def _publish_units(store: Store, folder: Path, file: UnitFile, mark: str) -> UnitFile:
    name = f"{PLAN_FOLDER}/{Path(file.file).stem}-{mark}.parquet"
    store.write(name, (folder / file.file).read_bytes())
    return file.model_copy(update={"file": name})


# --- retry ------------------------------------------------------------------------------------------------------------


def plan_retry(dest: str) -> Plan:
    """Return the plan with a retry round over the standing quarantine; unchanged if all of it is already planned.

    Rows of one face become items with that face_index; attempts are kept. Given-up units are split into sixteenths
    (then into single images) to isolate what kills the worker.
    """
    plan = load_plan(dest)
    retried = plan.retry_units
    waiting = [index for index in pending(plan) if index in retried]
    under_way = {row_of(item) for unit in plan.iter_units(waiting) for item in unit.items}
    standing = {row_of(row): (unit, row) for unit, row in standing_rows(plan) if row_of(row) not in under_way}
    if not standing:
        return plan
    whole = plan.record.size
    sizes: dict[int, list[Item]] = {}
    for item in _retry_items(plan, standing):
        given_up = standing[row_of(item)][1].stage == "unit"
        sizes.setdefault(max(1, whole // SPLIT**item.attempts) if given_up else whole, []).append(item)
    units: list[Unit] = []
    for size, items in sorted(sizes.items(), reverse=True):
        units += cut_units(items, size, plan.units + len(units))
    with temp_folder("plan") as folder:
        return _publish_round(plan, units, folder, kind="retry")


def _retry_items(plan: Plan, standing: Mapping[Row, tuple[int, Quarantined]]) -> list[Item]:
    """Return the planned items of quarantined rows, by index and face."""
    rows: dict[int, list[Quarantined]] = {}
    for _, row in standing.values():
        rows.setdefault(row.index, []).append(row)
    found = {
        row_of(row): replace(item, face_index=row.face_index, attempts=row.attempts)
        for unit in plan.iter_units({unit for unit, _ in standing.values()})
        for item in unit.items
        for row in rows.get(item.index, ())
    }
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -1 if key[1] is None else key[1]))]


# --- extend -----------------------------------------------------------------------------------------------------------


def _extend(plan: Plan, draft: PlanRecord, folder: Path, units: UnitsConfig, workers: int | None) -> Plan:
    """Return the plan with an extend round over new and changed inputs; unchanged if the inputs are the same.

    Rows of inputs that are gone stay, those of the earlier content of changed ones are taken out. PlanConflict where
    anything but the inputs differs.
    """
    if found := setting_differences(plan.record, draft):
        raise PlanConflict(plan.dest, found)
    if draft.items_sha256 == plan.inputs.items_sha256:
        return plan
    if draft.config["source"].get("deduplicate"):
        raise PlanError(
            f"{plan.dest}: --extend does not go with inputs.deduplicate: what was planned would have to be read again "
            "to know its content. Use --new, or plan without it"
        )
    changes = InputChanges(plan.inputs, draft, plan.store, folder, plan.replaced)
    logger.info(
        "%s: %d inputs are new, %d changed, %d gone (their rows stay)",
        plan.dest,
        changes.added,
        changes.changed,
        changes.removed,
    )
    # The earlier rows go first: should this end here, the next extension finds the inputs changed as before.
    replaced = _take_out(plan, {item.source_uri for item, known in changes.items() if known}) if changes.changed else []
    size = units.size_for(changes.added + changes.changed, workers) if workers else units.items_per_unit
    numbered = (replace(item, index=index) for index, (item, _) in enumerate(changes.items(), start=plan.planned_items))
    return _publish_round(
        plan,
        cut_units(numbered, size, plan.units),
        folder,
        kind="extend",
        unit_size=size,
        inputs_sha256=draft.items_sha256,
        inputs_fingerprint=draft.fingerprint,
        removed=changes.removed,
        replaced=replaced,
    )


def _take_out(plan: Plan, uris: set[str]) -> list[int]:
    """Rewrite the committed parts without rows of these inputs; return the inputs' item indices."""
    units: set[int] = set()
    indices: set[int] = set()
    for unit in plan.iter_units():
        if found := {item.index for item in unit.items if item.source_uri in uris}:
            units.add(unit.index)
            indices |= found
    parts = [name for name in plan.store.list() if PART_NAME.fullmatch(name)] if units else []
    for commit in read_commits(plan.dest):
        if commit.unit in units and commit.part is not None:
            try:
                kept = drop_rows(plan.store, commit, uris)
            except ValueError as error:
                raise PlanError(f"{error}, so rows of changed inputs cannot be taken out. Use --new") from error
            if kept != commit:
                kept = replace_commit(plan, commit, kept)
            begin = plan.part_name(commit.unit).removesuffix(".parquet")
            for name in parts:  # the part that was replaced, now or by an extension that did not get this far
                if name.startswith(begin) and name != kept.part:
                    plan.store.delete(name)
    return sorted(indices)


def _publish_round(plan: Plan, units: Iterable[Unit], folder: Path, **fields: Any) -> Plan:
    """Write units as the next round and return the plan with it; PlanError if another round came first."""
    number = len(plan.rounds) + 1
    files = write_units(folder, f"round-{number:05d}-units", units)
    # Names hold the content's hash as well: a round made at the same moment must not replace these files.
    files = [_publish_units(plan.store, folder, file, f"{plan.fingerprint[:8]}-{file.sha256[:8]}") for file in files]
    record = RoundRecord(
        round=number,
        fingerprint=plan.fingerprint,
        items=sum(file.items for file in files),
        units=sum(file.units for file in files),
        files=files,
        **fields,
    )
    try:
        plan.store.create(round_name(number), record.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        raise PlanError(
            f"another round of {plan.dest} began at the same moment. Run: deca status {plan.dest}"
        ) from error
    return load_plan(plan.dest)
