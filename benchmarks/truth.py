"""Annotations and identities of the embedded world against its truth."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from schemas.faces import CROP_SIZE
from schemas.parquet import fixed_values
from tasks.annotate.annotators.geometry import cut
from tasks.people.group import pairwise_scores, read_annotations
from tasks.units.commits import committed_parts

SAME_FACE = 0.35  # overlap of the landmarks' boxes, above which a true face is found
OUTER_CORNERS = [36, 45]
TURNED = (15, 30, 45)  # degrees of yaw that part the classes in which recall is reported

Points = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Truth:
    """The true faces, one a picture: by name of the picture."""

    names: list[str]
    people: list[str]
    landmarks: Points  # (N, 68, 2), pixel centres at whole coordinates, as annotations have them
    masks: list[bytes]  # PNG of the picture's size
    yaw: NDArray[np.float64]  # (N,), degrees to either side

    def only(self, names: set[str]) -> Truth:
        rows = [row for row, name in enumerate(self.names) if name in names]
        return Truth(
            [self.names[row] for row in rows],
            [self.people[row] for row in rows],
            self.landmarks[rows],
            [self.masks[row] for row in rows],
            self.yaw[rows],
        )


def read_truth(world: str) -> Truth:
    """truth.parquet/ of an archive of `deca synth`, which counts pixels from the picture's corner."""
    columns = ["path", "identity_id", "landmarks", "skin_mask", "pose"]
    table = pa.concat_tables(pq.read_table(part, columns=columns) for part in committed_parts(f"{world}/truth.parquet"))
    return Truth(
        [path.rpartition("/")[2] for path in table["path"].to_pylist()],
        table["identity_id"].to_pylist(),
        fixed_values(table, "landmarks") - 0.5,
        [mask["bytes"] for mask in table["skin_mask"].to_pylist()],
        np.degrees(np.abs(Rotation.from_rotvec(fixed_values(table, "pose")[:, :3]).as_euler("YXZ")[:, 0])),
    )


def joined(*parts: Truth) -> Truth:
    """Several archives as one."""
    return Truth(
        [name for part in parts for name in part.names],
        [person for part in parts for person in part.people],
        np.concatenate([part.landmarks for part in parts]),
        [mask for part in parts for mask in part.masks],
        np.concatenate([part.yaw for part in parts]),
    )


@dataclass(frozen=True)
class Found:
    """Which annotated face is which true one."""

    face_ids: list[str]  # of every annotated face
    true: NDArray[np.int64]  # of every annotated face: row of the truth, -1 for none
    nme: NDArray[np.float64]  # of the true ones, by distance of the outer eye corners
    mask: NDArray[np.float64]  # of the true ones: intersection over union of the skin masks, in the crop


def find(annotations: str, truth: Truth) -> Found:
    """Match every true face with the annotated one of its picture that overlaps it most."""
    columns = ["face_id", "source_uri", "landmarks", "crop_transform", "skin_mask"]
    table = read_annotations(annotations, columns)
    landmarks, transforms = fixed_values(table, "landmarks"), fixed_values(table, "crop_transform")
    of_picture: dict[str, list[int]] = defaultdict(list)
    for row, uri in enumerate(table["source_uri"].to_pylist()):
        of_picture[uri.rpartition("/")[2]].append(row)
    true, nme, mask = np.full(len(table), -1), [], []
    for number, name in enumerate(truth.names):
        overlaps = [(_overlap(landmarks[row], truth.landmarks[number]), row) for row in of_picture[name]]
        overlap, row = max(overlaps, default=(0.0, -1))
        if overlap > SAME_FACE:
            true[row] = number
            nme.append(_nme(landmarks[row], truth.landmarks[number]))
            made = _decode(table["skin_mask"][row].as_py()["bytes"]) >= 128
            asked = cut(_decode(truth.masks[number]), transforms[row].astype(np.float64), CROP_SIZE) >= 128
            mask.append(float((made & asked).sum() / max((made | asked).sum(), 1)))
    return Found(table["face_id"].to_pylist(), true, np.array(nme), np.array(mask))


def _overlap(a: Points, b: Points) -> float:
    """Intersection over union of two landmark sets' boxes."""
    low, high = np.maximum(a.min(axis=0), b.min(axis=0)), np.minimum(a.max(axis=0), b.max(axis=0))
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / float(np.prod(np.ptp(a, axis=0)) + np.prod(np.ptp(b, axis=0)) - shared)


def _nme(points: Points, true: Points) -> float:
    unit = np.linalg.norm(np.subtract(*true[OUTER_CORNERS]))
    return float(np.linalg.norm(points - true, axis=1).mean() / unit)


def _decode(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def annotation_figures(found: Found, truth: Truth) -> dict[str, Any]:
    """How well faces, landmarks and skin are found."""
    seen = np.zeros(len(truth.names), bool)
    seen[found.true[found.true >= 0]] = True
    turned = np.digitize(truth.yaw, TURNED)
    by_yaw = {
        f"recall_from_{first}_degrees": f"{seen[turned == place].mean():.3f} of {(turned == place).sum()}"
        for place, first in enumerate((0, *TURNED))
        if (turned == place).any()
    }
    return {
        "pictures": len(truth.names),
        "detection_recall": round(float(seen.mean()), 4),
        **by_yaw,
        "false_faces": int((found.true < 0).sum()),
        "landmark_nme": round(float(found.nme.mean()), 4),
        "landmark_nme_median": round(float(np.median(found.nme)), 4),
        "mask_iou": round(float(found.mask.mean()), 4),
        "mask_iou_median": round(float(np.median(found.mask)), 4),
    }


def identity_figures(found: Found, truth: Truth, assignments: pa.Table) -> dict[str, Any]:
    """How well clusters are the people, over the faces that are kept; a false face is a person of its own."""
    row_of = {face: row for row, face in enumerate(found.face_ids)}
    kept = [entry for entry in assignments.to_pylist() if entry["left_out"] is None]
    who = [
        truth.people[number] if (number := int(found.true[row_of[entry["face_id"]]])) >= 0 else entry["face_id"]
        for entry in kept
    ]
    scores = pairwise_scores(np.array([entry["identity_id"] for entry in kept]), np.array(who))
    sizes = np.unique(truth.people, return_counts=True)[1]
    have = np.unique(who, return_counts=True)[1]
    share = float((have * (have - 1)).sum() / (sizes * (sizes - 1)).sum())
    return {
        "faces": len(kept),
        "people": len(set(truth.people)),
        "clusters": len({entry["identity_id"] for entry in kept}),
        "precision": round(scores.precision, 4),
        "recall": round(scores.recall, 4),
        "purity": round(scores.purity, 4),
        "recall_of_archive": round(scores.recall * share, 4),  # of all pairs, also those with a face not found or kept
    }
