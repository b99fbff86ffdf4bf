"""`deca reconstruct photo.jpg --show`: the sheet of one image's faces, beside the image."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from pipelines.launch import run_flow
from pipelines.options import FAILED, console
from pipelines.settings import ConfigError, resolve
from pipelines.unit_command import UnitRun
from schemas.reconstruct import ReconstructConfig
from schemas.secrets import shown
from tasks.sources.archives import is_archive
from tasks.sources.endings import SHEET  # appended to the whole name: a.jpg and a.png have their own
from tasks.sources.listings import is_list
from tasks.sources.tables import is_table
from tasks.sources.videos import is_video
from tasks.sources.walk import SourceError, check_source, is_file, parse_glob
from tasks.store.scratch import temp_folder
from tasks.store.storage import Store, normalise
from tasks.units.commits import standing_quarantine
from tasks.units.reasons import NoRowsError


def show_image(run: UnitRun, own: dict[str, Any]) -> int:
    """Reconstruct one image and write the sheet of its faces next to it; return the exit code.

    own: the options of `deca reconstruct`. Without DEST only the sheet is kept, and slow preparation is left out:
    no choice of precision, no Ray.
    """
    # Threads of torch that spin at barriers cost more than they save on one image.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = run.options(own)
    if own["dest"] is not None:
        return _show(resolve(ReconstructConfig, run.config, run.settings, options), run.prefect)
    with temp_folder("show") as folder:
        quick = {"dest": f"{folder}/heads", "precision": own["precision"] or "fp32"}
        quick["ray.workers"] = options["ray.workers"] or 0
        return _show(resolve(ReconstructConfig, run.config, run.settings, options | quick), run.prefect, kept=False)


def _show(config: ReconstructConfig, prefect: bool, kept: bool = True) -> int:
    """kept: whether DEST is kept; where it is not, no printed line names it."""
    check_source(config.source)
    uri = normalise(config.source)
    if parse_glob(uri) or not is_file(uri) or any(kind(uri) for kind in (is_archive, is_list, is_table, is_video)):
        raise ConfigError(f"--show takes one image, and {uri} is none. For many: deca report DEST")
    if not {"codes", "displacement"} <= set(config.outputs) or config.layout == "files":
        raise ConfigError("--show draws from the columns of codes and displacement: leave --outputs and --layout out")
    code = FAILED
    with suppress(NoRowsError):  # its message names DEST; the reasons are printed below
        code = run_flow("reconstruct", config, prefect, kept)
    from tasks.reports.contact_sheet import CONTACT_SHEET  # torch is imported by now

    store = Store(config.dest)
    if not store.exists(CONTACT_SHEET):
        reasons = "; ".join(_reasons(config.dest))
        raise SourceError(f"{uri}: nothing to show ({reasons or 'no face'}). Try another image")
    if not kept:
        for reason in _reasons(config.dest):
            console.print(f"  left out  {shown(reason)}", markup=False, soft_wrap=True)
    folder, _, name = uri.rpartition("/")
    beside = Store(folder or "/")
    beside.write(name + SHEET, store.read(CONTACT_SHEET))
    console.print(f"\n  image  {beside.join(name + SHEET)}", markup=False, soft_wrap=True)
    return code


def _reasons(dest: str) -> list[str]:
    """Return the reasons in the quarantine of the image."""
    return [f"{row.stage}: {row.message}" for row in standing_quarantine(dest)]
