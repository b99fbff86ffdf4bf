"""The pages of docs/datasets, from the schemas: `python -m benchmarks.dataset_pages docs/datasets`.

A test regenerates and compares them, so a column cannot be added without a word about it.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import tokenize
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import pyarrow as pa
from pydantic import BaseModel

from schemas.animate import AnimateOutput, animation_schema
from schemas.columns import is_picture, meaning, type_in_words
from schemas.consensus import ConsensusRecord, consensus_schema
from schemas.evaluate import METRICS, evaluations_schema
from schemas.export import exports_schema
from schemas.faces import (
    ASSIGNMENTS_SCHEMA,
    IDENTITIES_SCHEMA,
    FacesVersion,
    ShardFile,
    annotations_schema,
    faces_schema,
)
from schemas.ledger import (
    ITEM_SCHEMA,
    QUARANTINE_SCHEMA,
    SNAPSHOT_SCHEMA,
    CommitRecord,
    PlanRecord,
    RoundRecord,
    StoredFile,
    UnitFile,
)
from schemas.reconstruct import Output, reconstruction_schema
from schemas.tracks import TRACKS_SCHEMA
from schemas.world import DISPLACEMENT_LIMIT, truth_schema

VERTICES, DESCRIPTOR = 7919, 127  # sizes that are known only with a head and an embedder: primes that nothing else has
LETTERS = {str(VERTICES): "V", str(DESCRIPTOR): "D"}
LIMIT = 0.01  # metres: only scale and offset depend on it, which no page quotes
COLUMN_OUTPUTS: tuple[Output, ...] = (
    "codes", "displacement", "vertices", "landmarks", "normals", "texture", "mesh", "preview",
)  # fmt: skip
GENERATED = "<!-- Written by `python -m benchmarks.dataset_pages docs/datasets`: change schemas/, not this page. -->"


class Dataset(NamedTuple):
    """One page: what it is, who writes it, where it lies, how it is read."""

    name: str
    title: str
    written_by: str
    about: str
    reading: str
    schema: Callable[[], pa.Schema]
    notes: str = ""


PARTS = """```python
import pyarrow.parquet as pq
from schemas.parquet import fixed_values
from tasks.units.commits import committed_parts

table = pq.read_table(committed_parts("{dest}"))  # the parts that commit records name, never a glob
{example}
```"""

DATASETS = (
    Dataset(
        "reconstructions",
        "reconstructions/",
        "`deca reconstruct`, `deca fit`",
        "One row a face: its codes, its displacement map, and what else `--outputs` asked for "
        "([reconstruct.md](../reconstruct.md#outputs)).",
        PARTS.format(
            dest="out/",
            example='shape = fixed_values(table, "shape")  # (N, 100) float32\n'
            'displacement = fixed_values(table, "displacement")  # (N, 256, 256) metres',
        ),
        lambda: _with_file(reconstruction_schema(LIMIT, COLUMN_OUTPUTS, vertices=VERTICES)),
        "Columns of an output are there only where it was asked for; by default those of `codes` and `displacement`. "
        "`displacement_file` stands in the place of `displacement` with `--layout files`.",
    ),
    Dataset(
        "consensus",
        "consensus/",
        "`deca reconstruct --consensus identity`",
        "One row a person: the codes that all of a person's pictures share. Lies beside the reconstructions; "
        "`consensus/_current.json` names the file that holds.",
        "```python\nfrom tasks.heads.consensus import read_consensus\n\ntable = read_consensus(\"out/\")\n```",
        lambda: consensus_schema(detail=True),
        "`detail` and `detail_spread` are there only where the detail code is shared as well.",
    ),
    Dataset(
        "tracks",
        "tracks/",
        "`deca reconstruct` of films",
        "One row a frame of a person's track, smoothed over time. Lies beside the reconstructions; "
        "`tracks/_current.json` names the file that holds ([animate.md](../animate.md)).",
        '```python\nfrom tasks.heads.track_records import read_tracks\n\ntable = read_tracks("out/")\n```',
        lambda: TRACKS_SCHEMA,
    ),
    Dataset(
        "animations",
        "animations/",
        "`deca animate`",
        "One row a frame of an animation: one head under one expression of a motion.",
        PARTS.format(dest="moving/", example='expressions = fixed_values(table, "exp")  # (N, 50)'),
        lambda: animation_schema(get_args(AnimateOutput), LIMIT),
        "Columns of an output are there only where it was asked for.",
    ),
    Dataset(
        "exports",
        "exports/",
        "`deca export`",
        "One row a head that was exported, its files beside it.",
        PARTS.format(dest="exported/", example='files = table["files"].to_pylist()'),
        exports_schema,
    ),
    Dataset(
        "annotations",
        "annotations/",
        "`deca ingest`",
        "One row for every face that was found, kept or not. Lies in the DEST of an ingest.",
        PARTS.format(dest="people/annotations", example='points = fixed_values(table, "landmarks")  # (N, 68, 2)'),
        lambda: annotations_schema(DESCRIPTOR),
    ),
    Dataset(
        "faces",
        "faces/",
        "`deca ingest`",
        "The faces that are kept, sorted by identity: what training reads. Versioned; "
        "`faces/_current.json` names the version that holds ([ingest.md](../ingest.md#what-comes-out)).",
        '```python\nfrom datasets import load_dataset\nfrom tasks.people.versions import open_faces\n\n'
        'train = open_faces("people/faces").uris("train")  # files of the version that holds\n'
        'faces = load_dataset("people/faces")  # the same through Hugging Face\n```',
        lambda: faces_schema(DESCRIPTOR),
        "Rows are sorted by (place, identity_id, face_id), place being the first 8 bytes of the identity's SHA-256; an "
        "identity lies in one file.",
    ),
    Dataset(
        "identities",
        "faces/index/identities-*.parquet",
        "`deca ingest`",
        "Where each identity of a version lies, sorted by shard, then row.",
        '```python\nfrom tasks.people.versions import open_faces\n'
        '\ntable = open_faces("people/faces").identities()\n```',
        lambda: IDENTITIES_SCHEMA,
    ),
    Dataset(
        "assignments",
        "faces/index/assignments-*.parquet",
        "`deca ingest`",
        "Who every annotated face is, or why one is not in faces/; sorted by face. Later runs keep identities by it.",
        '```python\nfrom tasks.people.versions import read_assignments\n'
        '\ntable = read_assignments("people/faces")\n```',
        lambda: ASSIGNMENTS_SCHEMA,
    ),
    Dataset(
        "evaluations",
        "evaluations/",
        "`deca evaluate`",
        "One row a picture and method. Figures that a benchmark does not have, or that have no value, are null "
        "([evaluate.md](../evaluate.md)).",
        PARTS.format(dest="figures/", example='shapes = fixed_values(table, "shape")  # (N, 100)'),
        evaluations_schema,
    ),
    Dataset(
        "truth",
        "truth.parquet/",
        "`deca synth`",
        "The truth beside the photographs of the embedded world, one row a picture "
        "([world.md](../world.md#the-truth)). Codes are in the method's [conventions](../conventions.md).",
        PARTS.format(dest="world/truth.parquet", example='true_shape = fixed_values(table, "shape")  # (N, 100)'),
        lambda: truth_schema(VERTICES),
        f"`displacement` spans {1000 * DISPLACEMENT_LIMIT:g} mm either way.",
    ),
    Dataset(
        "items",
        "_plan/units-*.parquet",
        "every flow over units",
        "The inputs of a plan, one row a picture, one row group a unit; frozen before any work.",
        '```python\nfrom tasks.units.plan import load_plan\n\nfor unit in load_plan("out/").iter_units():\n'
        "    print(unit.index, [item.uri for item in unit.items])\n```",
        lambda: ITEM_SCHEMA,
    ),
    Dataset(
        "quarantine",
        "_quarantine/*.parquet",
        "every flow over units",
        "What could not be done, and why. A row stands until a retry has taken it over; `deca status` counts those.",
        '```python\nfrom tasks.units.commits import standing_quarantine\n\nfor row in standing_quarantine("out/"):\n'
        "    print(row.uri, row.stage, row.message)\n```",
        lambda: QUARANTINE_SCHEMA,
    ),
    Dataset(
        "commits",
        "_commits/snapshot-*.parquet",
        "every flow over units",
        "Commit records, one row a unit, sorted by unit: what a run of more than 64 units makes of the single "
        "files `_commits/00042-<fp8>.json` ([records.md](records.md#commitrecord)). A unit may be in both, and in "
        "several snapshots: its highest revision holds.",
        '```python\nfrom tasks.units.commits import commit_table, read_commits\n'
        'from tasks.units.plan import load_plan\n\n'
        'table = commit_table(load_plan("out/"), ["rows", "seconds"])  # of all units, wherever their records lie\n'
        'for commit in read_commits("out/"):\n    print(commit.unit, commit.part, commit.sha256)\n```',
        lambda: SNAPSHOT_SCHEMA,
    ),
)  # fmt: skip

# Fields of records that explain themselves in code, for those who read the page alone.
FIELDS = {
    "detail": "whether the detail code is shared, too",
    "file": "name below the dataset",
    "bytes": "size of the file; of a commit, of its part",
    "faces": "rows of the version",
    "files": "the Parquet files that hold its units",
    "fingerprint": "SHA-256 over the other fields; of a round or a commit, that of its plan",
    "first_unit": "number of the first unit inside",
    "identities": "people",
    "identities_file": "where each identity lies",
    "assignments_file": "who every annotated face is",
    "inputs_fingerprint": "see `inputs_sha256`",
    "items": "inputs",
    "kind": "what the units are for",
    "part": "the unit's Parquet file; None: the unit was given up as a whole and has no rows",
    "quarantine": "the file with the rows that failed",
    "quarantined": "rows that failed",
    "removed": "see `inputs_sha256`",
    "replaced": "see `inputs_sha256`",
    "rows": "rows inside",
    "schema_version": "of this record",
    "seconds": "that a worker spent on the unit",
    "sha256": "of the file's bytes; of a commit, of its part",
    "shards": "the Parquet files of its rows",
    "split": "`train` or `val`",
    "unit": "number of the unit",
    "units": "units of work",
    "versions": "package and libraries that made the rows",
}

RECORDS: tuple[tuple[type[BaseModel], str], ...] = (
    (PlanRecord, "`_plan.json`: the frozen plan. The fingerprint is over every other field."),
    (
        RoundRecord,
        "`_plan/round-00001.json`: units behind the frozen plan's, for a retry or for what the source gained.",
    ),
    (
        CommitRecord,
        "`_commits/00042-<fp8>.json`: what makes a unit's part data. Every reader reads it before any part. "
        "Of many units the records lie in [snapshots](commits.md).",
    ),
    (FacesVersion, "`faces/versions/000001.json`: the files of a version of faces/; nothing else is data."),
    (ConsensusRecord, "`consensus/_current.json`: which file of consensus/ holds, and of which rows it was made."),
    (ShardFile, "A Parquet file of such a version."),
    (UnitFile, "A Parquet file of a plan."),
    (StoredFile, "A published file, wherever a record names one."),
)


def pages() -> dict[str, str]:
    """Text of every page by file name."""
    made = {f"{dataset.name}.md": page(dataset) for dataset in DATASETS}
    return made | {"records.md": record_page(), "README.md": index_page()}


def page(dataset: Dataset) -> str:
    """The page of one dataset."""
    schema = dataset.schema()
    version = (schema.metadata or {}).get(b"schema_version", b"?").decode()
    lines = [f"# {dataset.title}", "", GENERATED, "", _wrapped(dataset.about), ""]
    lines += [f"Written by {dataset.written_by}. Schema version {version}.", "", "| Column | Type | What |"]
    lines += ["| --- | --- | --- |", *(_row(dataset.name, field) for field in schema)]
    if dataset.notes:
        lines += ["", _wrapped(dataset.notes)]
    lines += ["", "## Reading", "", dataset.reading, "", _encodings(schema)]
    return "\n".join(lines).rstrip() + "\n"


def _row(dataset: str, field: pa.Field) -> str:
    kind = type_in_words(field)
    for number, letter in LETTERS.items():
        kind = kind.replace(number, letter)
    text = _meaning(dataset, field.name).replace("|", "\\|")
    return f"| `{field.name}` | {kind}{' or null' if field.nullable else ''} | {text} |"


def _meaning(dataset: str, column: str) -> str:
    if dataset == "evaluations":
        metric = next((metric for metric in METRICS if metric.name == column), None)
        if metric is not None:
            return f"{metric.label} ({metric.unit}; {metric.better} is better)"
    return meaning(dataset, column)


def _encodings(schema: pa.Schema) -> str:
    """What a reader must know about how these columns are stored."""
    said = []
    if any(pa.types.is_fixed_size_list(field.type) for field in schema):
        said.append("Arrays are `fixed_size_list` columns with their shape in the field's metadata")
    if any(b"scale" in (field.metadata or {}) for field in schema):
        said.append("integers that stand for numbers are stored x scale + offset, both in the field's metadata")
    if any(is_picture(field.type) for field in schema):
        said.append("pictures are Hugging Face's `struct<bytes, path>`")
    text = "; ".join(said)
    return _wrapped(f"{text}. `schemas.parquet.fixed_values` decodes a column of arrays.") if said else ""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _with_file(schema: pa.Schema) -> pa.Schema:
    """Both places that a displacement map can have, on one page."""
    file = reconstruction_schema(LIMIT, ("displacement",), "files").field("displacement_file")
    return schema.insert(schema.get_field_index("displacement") + 1, file)


# --- records ----------------------------------------------------------------------------------------------------------


def record_page() -> str:
    """The JSON records that say which files are data."""
    lines = ["# Records", "", GENERATED, "", "JSON files beside the Parquet files; they say what is data.", ""]
    for kind, about in RECORDS:
        comments = _comments(kind)
        lines += [f"## {kind.__name__}", "", about, "", "| Field | Type | What |", "| --- | --- | --- |"]
        hints = get_type_hints(kind)
        for name in kind.model_fields:
            text = comments.get(name) or FIELDS[name]
            lines.append(f"| `{name}` | {_type(hints[name])} | {text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _type(hint: object) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    for prefix in ("typing.", "schemas.ledger.", "schemas.faces."):
        text = text.replace(prefix, "")
    return text.replace("|", "\\|")


def _comments(kind: type[BaseModel]) -> dict[str, str]:
    """The comment of each field: at the end of its line, or on the lines above it; inherited fields included."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            found |= _own_comments(inspect.getsource(owner))
    return found


def _own_comments(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found, lines = {}, source.splitlines()
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = []
        line = node.lineno - 1
        while line in comments and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        text = " ".join(above) or comments.get(node.end_lineno or node.lineno, "")
        if text:
            found[node.target.id] = text.replace("|", "\\|")
    return found


def index_page() -> str:
    """What lies where, with a link to every page."""
    lines = ["# Datasets", "", GENERATED, ""]
    lines += ["Every dataset is Parquet that pandas, pyarrow, DuckDB, Ray Data and Hugging Face `datasets` open.", ""]
    lines += ["| Dataset | Written by | What |", "| --- | --- | --- |"]
    for dataset in DATASETS:
        about = dataset.about.split(". ")[0].split(" ([")[0].rstrip(".")
        lines.append(f"| [{dataset.title}]({dataset.name}.md) | {dataset.written_by} | {about} |")
    lines += ["", "[Records](records.md): the JSON files that say what is data."]
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Write every page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
        print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/datasets"))
