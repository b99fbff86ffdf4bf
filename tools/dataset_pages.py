"""The pages of docs/datasets, from the schemas: `python -m tools.dataset_pages docs/datasets`.

A test regenerates and compares them, so no column is added without a description.
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
from schemas.columns import COMMON, OWN, is_image, meaning, type_in_words
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
GENERATED = "<!-- Written by `python -m tools.dataset_pages docs/datasets`: change schemas/, not this page. -->"


class Dataset(NamedTuple):
    """One page: the dataset, its writer, its place, how to read it."""

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
        "One row a face: its codes, its displacement map, and other `--outputs` "
        "([reconstruct.md](../reconstruct.md#outputs)).",
        PARTS.format(
            dest="out/",
            example='shape = fixed_values(table, "shape")  # (N, 100) float32\n'
            'displacement = fixed_values(table, "displacement")  # (N, 256, 256) metres',
        ),
        lambda: _with_file(reconstruction_schema(LIMIT, COLUMN_OUTPUTS, vertices=VERTICES)),
        "Columns of an output exist only where `--outputs` names it; by default those of `codes` and `displacement`. "
        "`displacement_file` replaces `displacement` with `--layout files`.",
    ),
    Dataset(
        "consensus",
        "consensus/",
        "`deca reconstruct --consensus identity`",
        "One row an identity: the codes that all of its images share. Stored beside the reconstructions; "
        "`consensus/_current.json` names the current file.",
        "```python\nfrom tasks.heads.consensus import read_consensus\n\ntable = read_consensus(\"out/\")\n```",
        lambda: consensus_schema(detail=True),
        "`detail` and `detail_spread` exist only where the detail code is shared, too.",
    ),
    Dataset(
        "tracks",
        "tracks/",
        "`deca reconstruct` of videos",
        "One row a frame of a face track, smoothed over time. Stored beside the reconstructions; "
        "`tracks/_current.json` names the current file ([animate.md](../animate.md)).",
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
        "Columns of an output exist only where it was requested.",
    ),
    Dataset(
        "exports",
        "exports/",
        "`deca export`",
        "One row an exported head, with its files beside the part.",
        PARTS.format(dest="exported/", example='files = table["files"].to_pylist()'),
        exports_schema,
    ),
    Dataset(
        "annotations",
        "annotations/",
        "`deca ingest`",
        "One row for every detected face, kept or not. Stored in the DEST of an ingest.",
        PARTS.format(dest="people/annotations", example='points = fixed_values(table, "landmarks")  # (N, 68, 2)'),
        lambda: annotations_schema(DESCRIPTOR),
    ),
    Dataset(
        "faces",
        "faces/",
        "`deca ingest`",
        "The kept faces, sorted by identity, as training reads them. Versioned; "
        "`faces/_current.json` names the current version ([ingest.md](../ingest.md#what-comes-out)).",
        '```python\nfrom datasets import load_dataset\nfrom tasks.people.versions import open_faces\n\n'
        'train = open_faces("people/faces").uris("train")  # files of the current version\n'
        'faces = load_dataset("people/faces")  # the same through Hugging Face\n```',
        lambda: faces_schema(DESCRIPTOR),
        "Rows are sorted by (place, identity_id, face_id), place being the first 8 bytes of the identity's SHA-256; an "
        "identity is in one file.",
    ),
    Dataset(
        "identities",
        "faces/index/identities-*.parquet",
        "`deca ingest`",
        "Shard and rows of each identity of a version, sorted by shard, then row.",
        '```python\nfrom tasks.people.versions import open_faces\n'
        '\ntable = open_faces("people/faces").identities()\n```',
        lambda: IDENTITIES_SCHEMA,
    ),
    Dataset(
        "assignments",
        "faces/index/assignments-*.parquet",
        "`deca ingest`",
        "The identity of every annotated face, or why it has none; sorted by face. Later runs keep these identities.",
        '```python\nfrom tasks.people.versions import read_assignments\n'
        '\ntable = read_assignments("people/faces")\n```',
        lambda: ASSIGNMENTS_SCHEMA,
    ),
    Dataset(
        "evaluations",
        "evaluations/",
        "`deca evaluate`",
        "One row an image and method. Metrics that a benchmark does not have, or that have no value, are null "
        "([evaluate.md](../evaluate.md)).",
        PARTS.format(dest="figures/", example='shapes = fixed_values(table, "shape")  # (N, 100)'),
        evaluations_schema,
    ),
    Dataset(
        "truth",
        "truth.parquet/",
        "`deca synth`",
        "The truth of the photographs of the embedded world, one row an image "
        "([world.md](../world.md#the-truth)). Codes are in the method's [conventions](../conventions.md).",
        PARTS.format(dest="world/truth.parquet", example='true_shape = fixed_values(table, "shape")  # (N, 100)'),
        lambda: truth_schema(VERTICES),
        f"`displacement` spans {1000 * DISPLACEMENT_LIMIT:g} mm either way.",
    ),
    Dataset(
        "items",
        "_plan/units-*.parquet",
        "every flow over units",
        "The inputs of a plan, one row an image, one row group a unit; frozen before any work.",
        '```python\nfrom tasks.units.plan import load_plan\n\nfor unit in load_plan("out/").iter_units():\n'
        "    print(unit.index, [item.uri for item in unit.items])\n```",
        lambda: ITEM_SCHEMA,
    ),
    Dataset(
        "quarantine",
        "_quarantine/*.parquet",
        "every flow over units",
        "Inputs that failed, and why. A row counts until a retry replaces it; `deca status` counts those.",
        '```python\nfrom tasks.units.commits import standing_quarantine\n\nfor row in standing_quarantine("out/"):\n'
        "    print(row.uri, row.stage, row.message)\n```",
        lambda: QUARANTINE_SCHEMA,
    ),
    Dataset(
        "commits",
        "_commits/snapshot-*.parquet",
        "every flow over units",
        "Commit records, one row a unit, sorted by unit, compacted by a run of more than 64 units from the single "
        "files `_commits/00042-<fp8>.json` ([records.md](records.md#commitrecord)). A unit may be in both, and in "
        "several snapshots: its highest revision counts.",
        '```python\nfrom tasks.units.commits import commit_table, read_commits\n'
        'from tasks.units.plan import load_plan\n\n'
        'table = commit_table(load_plan("out/"), ["rows", "seconds"])  # of all units, wherever their records are\n'
        'for commit in read_commits("out/"):\n    print(commit.unit, commit.part, commit.sha256)\n```',
        lambda: SNAPSHOT_SCHEMA,
    ),
)  # fmt: skip

# Fields of records without a comment in code.
FIELDS = {
    "detail": "whether the detail code is shared, too",
    "file": "name below the dataset",
    "bytes": "size of the file; of a commit, of its part",
    "faces": "rows of the version",
    "files": "the Parquet files that hold its units",
    "fingerprint": "SHA-256 over the other fields; of a round or a commit, that of its plan",
    "first_unit": "number of the first unit inside",
    "identities": "number of identities",
    "identities_file": "shard and rows of each identity",
    "assignments_file": "the identity of every annotated face",
    "inputs_fingerprint": "see `inputs_sha256`",
    "items": "inputs",
    "kind": "purpose of the units",
    "part": "the unit's Parquet file; None: the whole unit failed and has no rows",
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
    "versions": "of the package and libraries that made the rows",
}

RECORDS: tuple[tuple[type[BaseModel], str], ...] = (
    (PlanRecord, "`_plan.json`: the frozen plan. The fingerprint is over every other field."),
    (
        RoundRecord,
        "`_plan/round-00001.json`: units behind the frozen plan's, for a retry or for new inputs of the source.",
    ),
    (
        CommitRecord,
        "`_commits/00042-<fp8>.json`: makes a unit's part data. Every reader reads it before any part. "
        "The records of many units are in [snapshots](commits.md).",
    ),
    (FacesVersion, "`faces/versions/000001.json`: the files of a version of faces/; nothing else is data."),
    (ConsensusRecord, "`consensus/_current.json`: the current file of consensus/, and the rows that it was made from."),
    (ShardFile, "A Parquet file of such a version."),
    (UnitFile, "A Parquet file of a plan."),
    (StoredFile, "A published file, wherever a record names one."),
)


def pages() -> dict[str, str]:
    """Return the text of every page by file name. Raises ValueError where schemas/columns.py describes no column."""
    there = {(dataset.name, field.name) for dataset in DATASETS for field in dataset.schema()}
    unknown = set(OWN) - there or set(COMMON) - {column for _, column in there}
    if unknown:
        raise ValueError(f"schemas/columns.py describes columns that no schema has: {sorted(map(str, unknown))}")
    made = {f"{dataset.name}.md": page(dataset) for dataset in DATASETS}
    return made | {"records.md": record_page(), "README.md": index_page()}


def page(dataset: Dataset) -> str:
    """Return the page of one dataset."""
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
    """Return the notes on the storage of these columns."""
    said = []
    if any(pa.types.is_fixed_size_list(field.type) for field in schema):
        said.append("Arrays are `fixed_size_list` columns with their shape in the field's metadata")
    if any(b"scale" in (field.metadata or {}) for field in schema):
        said.append("quantised values are stored x scale + offset, both in the field's metadata")
    if any(is_image(field.type) for field in schema):
        said.append("images are Hugging Face's `struct<bytes, path>`")
    text = "; ".join(said)
    return _wrapped(f"{text}. `schemas.parquet.fixed_values` decodes a column of arrays.") if said else ""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _with_file(schema: pa.Schema) -> pa.Schema:
    """Return the schema with both places of a displacement map."""
    file = reconstruction_schema(LIMIT, ("displacement",), "files").field("displacement_file")
    return schema.insert(schema.get_field_index("displacement") + 1, file)


# --- records ----------------------------------------------------------------------------------------------------------


def record_page() -> str:
    """Return the page of the JSON records that name the data files."""
    lines = [
        "# Records",
        "",
        GENERATED,
        "",
        "JSON files beside the Parquet files; they name the data files.",
        "",
    ]
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
    """Return the comment of each field (end of its line, or the lines above), inherited fields included."""
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
    """Return the index with a link to every page."""
    lines = ["# Datasets", "", GENERATED, ""]
    lines += ["Every dataset is Parquet that pandas, pyarrow, DuckDB, Ray Data and Hugging Face `datasets` open.", ""]
    lines += ["| Dataset | Written by | What |", "| --- | --- | --- |"]
    for dataset in DATASETS:
        about = dataset.about.split(". ")[0].split(" ([")[0].rstrip(".")
        lines.append(f"| [{dataset.title}]({dataset.name}.md) | {dataset.written_by} | {about} |")
    lines += ["", "[Records](records.md): the JSON files that name the data files."]
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Write every page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
        print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/datasets"))
