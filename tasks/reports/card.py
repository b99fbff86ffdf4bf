"""The card of a faces/ dataset: a page for readers (card.html) and the README.md that Hugging Face `datasets` reads.

Both lie beside the data, hold no time and no place, and are drawn from a fixed sample: the same version gives the same
bytes. The README names the files of the version it describes, so `load_dataset(folder)` reads exactly that version.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import ValidationError

from schemas.annotate import STEPS, AnnotateConfig
from schemas.faces import ANNOTATIONS_FOLDER, QUALITY, FacesVersion, ShardFile
from schemas.parquet import fixed_values
from tasks.draw.pages import page_templates
from tasks.draw.skin_tone import CLASSES, tone_class, typology_angle
from tasks.people.versions import FacesError, open_faces
from tasks.store.storage import Store, open_uri, storage_errors
from tasks.units.commits import committed_units
from tasks.units.plan import Plan, PlanError, load_plan
from tasks.units.reasons import quarantine_reasons

CARD, README = "card.html", "README.md"
CHART_SHARDS = 64  # shards whose figures are charted: a quarter of a million faces
SAMPLE_GROUPS, SAMPLES = 32, 240  # row groups that are read for images, and faces taken from them
SHOWN, SHOWN_SIZE = 24, 200  # faces on the page, and pixels on a side
CHARTED = ("det_score", *QUALITY)
SAMPLED = ("crop", "skin_mask", "landmarks", "crop_transform", "identity_id", "source_uri", "yaw", "eye_distance")
SIZE_CLASSES = {"1": 1, "2": 2, "3-4": 3, "5-9": 5, "10-19": 10, "20-49": 20, "50-99": 50, "100+": 100}
TONE_COLOURS = ("#f3dccb", "#e6bfa1", "#cf9f78", "#ad7a50", "#7d5233", "#46301f")

# What the makers of the weights say; docs/annotators.md has the whole table.
LICENCES = {
    "dlib": "dlib's 68-point predictor was trained on iBUG 300-W, which excludes commercial use.",
    "facexlib": "facexlib's weights were trained on WIDER FACE, CelebAMask-HQ (non-commercial research) and MS1M "
    "(withdrawn by its owner).",
    "face_alignment": "FAN's weights were trained on 300W-LP.",
    "sidecar": "Labels beside the images: their makers' terms.",
}

_templates = page_templates(Path(__file__).parent)


@dataclass(frozen=True)
class Face:
    """A face of the sample grid."""

    image: str  # data URI
    identity: str
    uri: str
    note: str


def write_card(faces_dest: str) -> str:
    """Write card.html and README.md of the current version; return the page's URI. FacesError if there is no version.

    The page also says what is in quarantine where annotations/ lies beside faces/.
    """
    version, store = open_faces(faces_dest).version, Store(faces_dest)
    plan = _annotations(faces_dest)
    samples = _samples(store, version.shards)
    page = _templates.get_template("card.html.j2").render(
        version=version,
        facts=_facts(version, plan),
        charts=[Markup(chart) for chart in _charts(store, version, samples)],
        sampled=sum(shard.rows for shard in _spread(version.shards, CHART_SHARDS)),
        toned=samples.num_rows,
        faces=list(_shown(samples)),
        left_out=sorted(version.left_out.items(), key=lambda entry: (-entry[1], entry[0])),
        reasons=quarantine_reasons(plan) if plan else [],
        settings=_settings(version, plan),
        licences=_licences(plan),
    )
    store.write(CARD, page.encode())
    _write_readme(store, version, plan)  # last: it says which version is described
    return store.join(CARD)


def is_up_to_date(faces_dest: str) -> bool:
    """Return whether the card is of the current version and quarantine."""
    try:
        front = yaml.safe_load(Store(faces_dest).read(README).decode().split("---\n")[1])
        return bool(front["deca"] == _state(open_faces(faces_dest).version, _annotations(faces_dest)))
    except FileNotFoundError:
        return False
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):  # replaced by the user
        return False


def _annotations(faces_dest: str) -> Plan | None:
    """The plan of the annotations beside faces/; None where faces/ was moved away from them."""
    try:
        return load_plan(f"{Store(faces_dest).uri.rpartition('/')[0]}/{ANNOTATIONS_FOLDER}")
    except PlanError:
        return None


# --- what is read -----------------------------------------------------------------------------------------------------


def _spread(entries: list[Any], count: int) -> list[Any]:
    """At most `count` entries, evenly spaced."""
    return [entries[place] for place in _places(len(entries), count)]


def _places(length: int, count: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, length - 1, min(length, count)).round()}) if length else []


@contextmanager
def _opened(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for ranged reads. FacesError where it is missing."""
    uri = store.join(name)
    try:
        with storage_errors("read", uri):
            fs, path = open_uri(uri)
            with fs.open(path, "rb") as file:
                yield pq.ParquetFile(file)
    except FileNotFoundError as error:
        raise FacesError(
            f"{uri} belongs to the current version and is missing. Run: deca verify {store.uri}"
        ) from error


def _figures(store: Store, shards: list[ShardFile]) -> dict[str, NDArray[np.float32]]:
    tables = []
    for shard in _spread(shards, CHART_SHARDS):
        with _opened(store, shard.file) as parquet:
            tables.append(parquet.read(columns=list(CHARTED)))
    if not tables:
        return {name: np.empty(0, np.float32) for name in CHARTED}
    table = pa.concat_tables(tables)
    return {name: table[name].to_numpy() for name in CHARTED}


def _samples(store: Store, shards: list[ShardFile]) -> pa.Table:
    """Return rows spread evenly over the dataset, from few row groups."""
    ends = np.cumsum([shard.rows for shard in shards])
    groups: dict[int, list[int]] = {}  # shard: rows whose row groups are read
    for place in _places(int(ends[-1]) if shards else 0, SAMPLE_GROUPS):
        which = int(np.searchsorted(ends, place, side="right"))
        groups.setdefault(which, []).append(place - int(ends[which] - shards[which].rows))
    tables = []
    for which, rows in groups.items():
        with _opened(store, shards[which].file) as parquet:
            sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.metadata.num_row_groups)]
            for index in sorted({int(np.searchsorted(np.cumsum(sizes), row, side="right")) for row in rows}):
                tables.append(parquet.read_row_group(index, columns=list(SAMPLED)))
    each = -(-SAMPLES // max(len(tables), 1))
    tables = [table.take(_places(table.num_rows, each)) for table in tables]
    return pa.concat_tables(tables) if tables else pa.table({name: [] for name in SAMPLED})


def identity_sizes(faces_dest: str) -> dict[str, int]:
    """Identities of the current version by their number of faces, in the classes of SIZE_CLASSES."""
    sizes = open_faces(faces_dest).identities()["rows"].to_numpy()
    counts, _ = np.histogram(sizes, [*SIZE_CLASSES.values(), np.inf])
    return dict(zip(SIZE_CLASSES, counts.tolist(), strict=True))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _charts(store: Store, version: FacesVersion, samples: pa.Table) -> Iterator[str]:
    from tasks.draw.charts import bars, histogram  # a second of imports that commands without a card do not pay

    figures = _figures(store, version.shards)
    yield bars(identity_sizes(store.uri), "identities by their number of faces")
    yield histogram(figures["eye_distance"], "distance of the eyes, source pixels", log=True)
    yield histogram(figures["det_score"], "detection score")
    yield histogram(figures["yaw"], "yaw, degrees (estimated)")
    yield histogram(figures["pitch"], "pitch, degrees (estimated)")
    yield histogram(figures["sharpness"], "sharpness, variance of the Laplacian", log=True)
    yield histogram(figures["mask_coverage"], "skin inside the landmarks' outline")
    tones = Counter(tone_class(angle) for angle in _tones(samples) if angle is not None)
    yield bars({name: tones[name] for name in CLASSES}, "skin tone, class of the typology angle", TONE_COLOURS)


def _tones(samples: pa.Table) -> Iterator[float | None]:
    for crop, mask in zip(samples["crop"].to_pylist(), samples["skin_mask"].to_pylist(), strict=True):
        yield typology_angle(_pixels(crop, "RGB"), _pixels(mask, "L"))


def _pixels(image: dict[str, Any], mode: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])).convert(mode))


def _shown(samples: pa.Table) -> Iterator[Face]:
    if not samples.num_rows:
        return
    rows = samples.take(_places(samples.num_rows, SHOWN))
    landmarks, transforms = fixed_values(rows, "landmarks"), fixed_values(rows, "crop_transform")
    plain = rows.select(["crop", "skin_mask", "identity_id", "source_uri", "yaw", "eye_distance"]).to_pylist()
    for row, points, transform in zip(plain, landmarks, transforms, strict=True):
        image = _drawn(row, points @ transform[:, :2].T + transform[:, 2])
        note = f"yaw {row['yaw']:.0f}°, eyes {row['eye_distance']:.0f} px"
        yield Face(image, row["identity_id"], row["source_uri"], note)


def _drawn(row: dict[str, Any], points: NDArray[np.float64]) -> str:
    """The crop with the outline of its mask and its landmarks (68, 2), as a data URI."""
    pixels, skin = _pixels(row["crop"], "RGB").copy(), _pixels(row["skin_mask"], "L") > 127
    inner = np.zeros_like(skin)
    inner[1:-1, 1:-1] = skin[:-2, 1:-1] & skin[2:, 1:-1] & skin[1:-1, :-2] & skin[1:-1, 2:]
    pixels[skin & ~inner] = (255, 176, 0)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for x, y in points:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(60, 255, 90), outline=(0, 60, 0))
    buffer = io.BytesIO()
    image.resize((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- what is said -----------------------------------------------------------------------------------------------------


def _facts(version: FacesVersion, plan: Plan | None) -> list[tuple[str, str]]:
    facts = [
        ("faces", f"{version.faces:,}"),
        ("identities", f"{version.identities:,}"),
        *((f"faces in {split}", f"{_rows(version, split):,}") for split in ("train", "val")),
        ("shards", f"{len(version.shards):,}"),
        ("megabytes", f"{sum(shard.bytes for shard in version.shards) / 1e6:,.1f}"),
        ("faces left out", f"{sum(version.left_out.values()):,}"),
    ]
    return [*facts, ("images", f"{plan.inputs.items:,}")] if plan else facts


def _rows(version: FacesVersion, split: str) -> int:
    return sum(shard.rows for shard in version.shards if shard.split == split)


def _settings(version: FacesVersion, plan: Plan | None) -> str:
    """Return the config of the dataset as YAML."""
    made: dict[str, Any] = {}
    if plan:
        config = dict(plan.record.config)
        made = {"source": plan.record.source, "code": plan.record.code, "inputs": config.pop("source"), **config}
    return yaml.safe_dump({**made, **version.config, "models": version.weights}, sort_keys=False, allow_unicode=True)


def _licences(plan: Plan | None) -> list[str]:
    """Return the licence terms of the weights used; of all weights where that is unknown."""
    try:
        config = AnnotateConfig.model_validate(plan.record.config["annotate"] if plan else None)
    except (KeyError, ValidationError):  # faces/ without its annotations, or those of another version
        return list(LICENCES.values())
    return [LICENCES[provider] for provider in sorted({config.provider_of(step) for step in STEPS})]


def _state(version: FacesVersion, plan: Plan | None) -> dict[str, Any]:
    """Return the state that a card depends on; a changed quarantine shows in the number of committed units."""
    units = {"units": len(committed_units(plan))} if plan else {}
    return {"version": version.version, "fingerprint": version.fingerprint, **units}


def _write_readme(store: Store, version: FacesVersion, plan: Plan | None) -> None:
    files = {split: _files(version.shards, split) for split in ("train", "val")}
    front: dict[str, Any] = {
        "pretty_name": "Faces sorted by identity",
        "license": "other",
        "tags": ["faces"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": names} for split, names in files.items() if names],
            }
        ],
        "deca": _state(version, plan),
    }
    text = _templates.get_template("card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False),
        version=version,
        facts=_facts(version, plan),
        settings=json.dumps(version.config, indent=2),
        licences=_licences(plan),
    )
    store.write(README, text.encode())


def _files(shards: Iterable[ShardFile], split: str) -> list[str]:
    return [shard.file for shard in shards if shard.split == split]
