"""The procedural head: valid FLAME format, anatomy that works under posing, landmarks, atlas, cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from smplx.lbs import lbs

from deca_core.assets import procedural
from deca_core.assets.bundle import ARRAYS_FILE, PARENTS, AssetBundle
from deca_core.assets.head.mesh import build_mesh
from tests.deca_core.assets.population import REFERENCES, WIDENED, Population, crossing_pairs

Array = NDArray[np.floating]
MM = 1e-3
LEFT_EYE, RIGHT_EYE = 3, 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def head(cache: Path) -> AssetBundle:
    return build_in(cache)


def test_its_name_is_what_checkpoints_know_it_by(head):
    assert head.name == procedural.NAME


def build_in(folder: Path, built: AssetBundle | None = None) -> AssetBundle:
    """`procedural_head()` with its cache in `folder`, past the in-process cache; `built` saves building it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECA_CACHE", str(folder))
        if built is not None:
            patch.setattr(procedural, "_build", lambda: built)
        procedural._cached.cache_clear()
        try:
            return procedural.procedural_head()
        finally:
            procedural._cached.cache_clear()


def pose_head(head: AssetBundle, **rotations: tuple[float, float, float]) -> Array:
    """Template vertices (V, 3) posed by smplx, an independent implementation of eq. 1."""
    joints = ("root", "neck", "jaw", "left_eye", "right_eye")
    pose = np.concatenate([rotations.get(joint, (0.0, 0.0, 0.0)) for joint in joints])
    tensors = (
        np.zeros(100),
        pose,
        head.v_template,
        head.shape_basis,
        head.pose_basis.reshape(-1, 36).T,
        head.joint_regressor,
    )
    betas, pose_t, template, basis, correctives, regressor = (torch.tensor(array).float() for array in tensors)
    parents, weights = torch.tensor(PARENTS), torch.tensor(head.skin_weights)
    vertices, _ = lbs(betas[None], pose_t[None], template[None], basis, correctives, regressor, parents, weights)
    return vertices[0].double().numpy()


def with_expression(head: AssetBundle, **weights: float) -> Array:
    """Template vertices under named expressions."""
    codes = np.array([weights.get(name, 0.0) for name in head.expression_names])
    return head.v_template + head.exp_basis.astype(float) @ codes


def sampled(head: AssetBundle, count: int, seed: int) -> list[Array]:
    """Vertices of N(0, I) identities."""
    rng = np.random.default_rng(seed)
    return [head.v_template + head.shape_basis.astype(float) @ rng.standard_normal(100) for _ in range(count)]


def landmarks(head: AssetBundle, vertices: Array, yaw_bin: int = 0) -> Array:
    """All 68 landmarks, (68, 3), with the contour of a yaw bin."""
    faces = np.concatenate([head.dynamic_landmark_faces[yaw_bin], head.static_landmark_faces])
    bary = np.concatenate([head.dynamic_landmark_bary[yaw_bin], head.static_landmark_bary])
    return (vertices[head.faces[faces]] * bary[..., None]).sum(1)


def eyeball(head: AssetBundle, joint: int) -> NDArray[np.bool_]:
    return head.skin_weights[:, joint] > 0.5


def areas(points: Array) -> Array:
    """Signed areas of triangles (n, 3, 2)."""
    a, b = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    return 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def normals(vertices: Array, faces: NDArray[np.int64]) -> Array:
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return cross / np.linalg.norm(cross, axis=1, keepdims=True)


def front_most(points: Array, vertices: Array, faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices (n,) of the front-most triangles along z through (n, 2) points."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    area = areas(vertices[faces][..., :2])
    area = np.where(np.abs(area) < 1e-12, np.nan, area)
    found = []
    for x, y in points:
        p = np.broadcast_to([x, y], (len(faces), 2))
        w0 = areas(np.stack([p, b[:, :2], c[:, :2]], 1)) / area
        w1 = areas(np.stack([a[:, :2], p, c[:, :2]], 1)) / area
        inside = (w0 >= 0) & (w1 >= 0) & (w0 + w1 <= 1)
        depth = np.where(inside, w0 * a[:, 2] + w1 * b[:, 2] + (1 - w0 - w1) * c[:, 2], -np.inf)
        found.append(int(depth.argmax()))
    return np.array(found)


# ---------------------------------------------------------------- format


def test_format(head: AssetBundle) -> None:
    assert 5000 <= head.num_vertices <= 5600
    assert np.array_equal(np.unique(head.faces), np.arange(head.num_vertices))
    assert np.array_equal(np.unique(head.uv_faces), np.arange(len(head.uv)))
    np.testing.assert_allclose(head.skin_weights.sum(1), 1, atol=1e-6)
    assert head.skin_weights.min() >= 0
    assert len(set(head.expression_names)) == 50
    assert {"smile", "frown", "brow_raise", "brow_lower", "lids_close", "pucker", "cheek_raise", "nose_wrinkle"} < set(
        head.expression_names
    )
    for array in (head.static_landmark_bary, head.dynamic_landmark_bary, head.full_landmark_bary):
        np.testing.assert_allclose(array.sum(-1), 1, atol=1e-6)
        assert array.min() >= 0


def test_size_and_axes(head: AssetBundle) -> None:
    """Metres, y up, z out of the face, x to the subject's left, origin inside."""
    points = landmarks(head, head.v_template) / MM
    nose, chin, ear = points[30], points[8], points[16]
    assert nose[2] > points[36:48, 2].max() > ear[2]
    assert points[19, 1] > points[37, 1] > nose[1] > points[51, 1] > chin[1]
    assert points[45, 0] > 30
    assert points[36, 0] < -30
    assert np.linalg.norm(points[45] - points[36]) == pytest.approx(90, abs=6)  # ex-ex, Farkas 1994
    assert points[27, 1] - chin[1] == pytest.approx(118, abs=8)  # n-gn
    assert head.v_template[:, 1].min() < -0.1
    assert np.abs(head.v_template).max() < 0.16


def test_mesh_is_closed_but_for_its_openings(head: AssetBundle) -> None:
    edges = np.sort(head.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    assert set(count) == {1, 2}
    assert (count == 1).sum() < 200  # neck, lid margins, rows of teeth


def test_faces_are_counter_clockwise_from_outside(head: AssetBundle) -> None:
    assert (areas(head.uv[head.uv_faces].astype(float)) > 0).all()
    for joint in (LEFT_EYE, RIGHT_EYE):
        ball = eyeball(head, joint)
        faces = head.faces[ball[head.faces].all(1)]
        outward = head.v_template[faces].mean(1) - head.v_template[ball].mean(0)
        assert ((normals(head.v_template, faces) * outward).sum(1) > 0).all()
    # Seen from the front, the front-most triangle faces the viewer.
    grid = np.stack(np.meshgrid(np.linspace(-0.06, 0.06, 21), np.linspace(-0.08, 0.1, 25)), -1).reshape(-1, 2)
    triangles = front_most(grid, head.v_template.astype(float), head.faces)
    assert (normals(head.v_template, head.faces[triangles])[:, 2] > 0).all()


def test_mirror_symmetry(head: AssetBundle) -> None:
    for points, mirror in ((head.v_template, head.v_template * [-1, 1, 1]), (head.uv, [1, 0] + head.uv * [-1, 1])):
        distance, _ = cKDTree(points).query(mirror)
        assert distance.max() < 1e-6
    assert np.abs(head.face_mask - head.face_mask[:, ::-1]).max() < 1e-5


# ---------------------------------------------------------------- atlas


def test_atlas_does_not_overlap(head: AssetBundle) -> None:
    size = 256
    covered = np.zeros((size, size), int)
    for corners in head.uv[head.uv_faces].astype(float) * size:
        low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int) + 1
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        points = np.stack([x, y], -1).reshape(-1, 2)
        (a, b, c), total = corners, areas(corners[None])[0]
        w0 = areas(np.stack([points, np.broadcast_to(b, points.shape), np.broadcast_to(c, points.shape)], 1)) / total
        w1 = areas(np.stack([np.broadcast_to(a, points.shape), points, np.broadcast_to(c, points.shape)], 1)) / total
        inside = ((w0 > 0) & (w1 > 0) & (w0 + w1 < 1)).reshape(x.shape)
        covered[low[1] : high[1], low[0] : high[0]] += inside[: size - low[1], : size - low[0]]
    assert covered.max() == 1
    assert (covered == 1).mean() > 0.85


def test_face_fills_the_patch_of_the_detail_losses(head: AssetBundle) -> None:
    uv_of_landmark = (head.uv[head.uv_faces[head.full_landmark_faces]] * head.full_landmark_bary[..., None]).sum(1)
    column, row = uv_of_landmark[:, 0] * 256, (1 - uv_of_landmark[:, 1]) * 256
    assert 45 < column.min() < 75
    assert 181 < column.max() < 211
    assert 45 < row.min() < 75
    assert 181 < row.max() < 211
    patch = head.face_mask[50:206, 50:206]
    assert patch.mean() > 0.75
    assert patch.sum() > 0.75 * head.face_mask.sum()
    assert (head.face_eye_mask >= head.face_mask).all()
    assert (head.face_eye_mask - head.face_mask).max() == 1


# ---------------------------------------------------------------- rig


def test_joints_are_where_the_regressor_puts_them(head: AssetBundle) -> None:
    joints = head.joint_regressor.astype(float) @ head.v_template
    np.testing.assert_allclose(head.joint_regressor.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(joints[:3, 0], 0, atol=1e-6)
    for joint in (LEFT_EYE, RIGHT_EYE):
        radius = np.linalg.norm(head.v_template[eyeball(head, joint)] - joints[joint], axis=1) / MM
        assert 12.1 < radius.min() <= radius.max() < 13.0  # the cornea bulges a little


def test_eyeballs_stay_rigid(head: AssetBundle) -> None:
    for joint in (LEFT_EYE, RIGHT_EYE):
        ball = eyeball(head, joint)
        assert np.ptp(head.shape_basis[ball], axis=0).max() < 1e-7
        assert np.abs(head.exp_basis[ball]).max() < 1e-7
        assert np.abs(head.pose_basis[ball]).max() < 1e-7


def test_eye_joint_turns_its_eyeball_only(head: AssetBundle) -> None:
    centre = (head.joint_regressor.astype(float) @ head.v_template)[LEFT_EYE]
    posed = pose_head(head, left_eye=(0.0, 0.5, 0.0))
    ball = eyeball(head, LEFT_EYE)
    turn = np.array([[np.cos(0.5), 0, np.sin(0.5)], [0, 1, 0], [-np.sin(0.5), 0, np.cos(0.5)]])
    np.testing.assert_allclose(posed[ball], (head.v_template[ball] - centre) @ turn.T + centre, atol=1e-6)
    np.testing.assert_allclose(posed[eyeball(head, RIGHT_EYE)], head.v_template[eyeball(head, RIGHT_EYE)], atol=1e-6)


def test_jaw_opens_the_mouth(head: AssetBundle) -> None:
    """Lips touch at rest and part by centimetres; the upper face and the upper lip stay."""

    def gap(vertices: Array) -> float:
        points = landmarks(head, vertices) / MM
        return float(points[62, 1] - points[66, 1])

    rest, posed = head.v_template.astype(float), pose_head(head, jaw=(np.radians(12), 0.0, 0.0))
    assert abs(gap(rest)) < 1.0
    assert 12 < gap(posed) < 30
    moved = np.linalg.norm(landmarks(head, posed) - landmarks(head, rest), axis=1) / MM
    assert moved[17:36].max() < 1.0
    assert moved[51] < 1.5
    assert moved[8] > 12
    assert gap(with_expression(head, lips_part=1.0)) > 2


def test_closed_lids_cover_the_eyeballs(head: AssetBundle) -> None:
    open_eyes, closed = head.v_template.astype(float), with_expression(head, lids_close=1.0)
    points = landmarks(head, open_eyes) / MM
    assert points[[37, 38, 43, 44], 1].min() - points[[41, 40, 47, 46], 1].max() > 7
    points = landmarks(head, closed) / MM
    assert np.abs(points[[37, 38, 43, 44], 1] - points[[41, 40, 47, 46], 1]).max() < 2.0

    def seen(vertices: Array) -> float:
        """Share of a grid over the left eye's opening where the eyeball is what the viewer sees."""
        centre = (head.joint_regressor.astype(float) @ head.v_template)[LEFT_EYE]
        grid = np.stack(np.meshgrid(np.linspace(-14, 14, 25), np.linspace(-6, 6, 17)), -1).reshape(-1, 2) * MM
        triangles = front_most(centre[:2] + grid, vertices, head.faces)
        return float(eyeball(head, LEFT_EYE)[head.faces[triangles]].all(1).mean())

    assert seen(open_eyes) > 0.35
    assert seen(closed) < 0.02


# ---------------------------------------------------------------- landmarks


def test_landmarks_are_paired(head: AssetBundle) -> None:
    points = landmarks(head, head.v_template.astype(float))
    pairs = [(i, 16 - i) for i in range(8)] + [(17 + i, 26 - i) for i in range(5)]
    pairs += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46), (31, 35), (48, 54), (60, 64), (67, 65)]
    for right, left in pairs:
        np.testing.assert_allclose(points[right] * [-1, 1, 1], points[left], atol=2e-4)
        assert points[right, 0] < 0
    full = (head.v_template[head.faces[head.full_landmark_faces]] * head.full_landmark_bary[..., None]).sum(1)
    np.testing.assert_allclose(full, points, atol=1e-6)


@pytest.mark.parametrize("degrees", [30, -30])
def test_contour_follows_the_silhouette(head: AssetBundle, degrees: int) -> None:
    """The far side's contour is on the outline of the turned head, in the bin that the yaw formula picks."""
    yaw = np.radians(degrees)
    rotation = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    angle = np.degrees(np.arctan2(-rotation[2, 0], np.hypot(rotation[0, 0], rotation[1, 0])))
    bins = {sign: round(sign * angle) if sign * angle >= 0 else 39 + round(-sign * angle) for sign in (1, -1)}
    turned = head.v_template @ rotation.T
    # A face turned to +x hides the subject's left side (landmarks 9..16); it is the far one.
    far, side = (np.arange(9, 17), 1) if degrees > 0 else (np.arange(7, -1, -1), -1)

    def misses(yaw_bin: int) -> Array:
        """mm from each far contour point to the outermost vertex near its height."""
        points = landmarks(head, turned, yaw_bin)[far]
        near = np.abs(turned[:, 1] - points[:, 1:2]) < 3 * MM
        return np.array([(side * turned[rows, 0]).max() for rows in near]) / MM - side * points[:, 0] / MM

    assert misses(bins[1])[:7].max() < 4
    assert misses(bins[1]).max() < 12  # beside the eye, the temple is further out
    assert misses(bins[-1]).mean() > misses(bins[1]).mean() + 5


def test_contour_slides_smoothly_and_mirrors(head: AssetBundle) -> None:
    order = [*range(78, 39, -1), *range(40)]  # yaw -39..39
    path = np.stack([landmarks(head, head.v_template.astype(float), index)[:17] for index in order]) / MM
    assert np.linalg.norm(np.diff(path, axis=0), axis=-1).max() < 7
    np.testing.assert_allclose(path, path[::-1, ::-1] * [-1, 1, 1], atol=0.3)


# ---------------------------------------------------------------- population


def test_subjects_differ_and_none_is_broken(head: AssetBundle) -> None:
    subjects = sampled(head, 24, seed=123)
    points = np.stack([landmarks(head, vertices) for vertices in subjects]) / MM
    eyes = points[:, 42:48].mean(1)[:, 0] - points[:, 36:42].mean(1)[:, 0]
    height = points[:, 27, 1] - points[:, 8, 1]
    mouth = points[:, 54, 0] - points[:, 48, 0]
    for measure, low, high in ((eyes, 50, 78), (height, 90, 150), (mouth, 38, 66)):
        assert low < measure.min() < measure.max() < high
        assert measure.std() > 0.03 * measure.mean()
    skin = head.faces[(head.skin_weights[:, 3:].sum(1) < 0.5)[head.faces].all(1)]
    rest = normals(head.v_template, skin)
    for vertices in subjects:
        assert ((normals(vertices, skin) * rest).sum(1) < 0).mean() < 0.004  # folded triangles


def test_population_is_plausible(head: AssetBundle) -> None:
    """No crossings, dimensions within the anthropometric bands, lids that close."""
    population = Population(head, build_mesh(), samples=40, seed=3)
    for name, pairs in population.intersections().items():
        assert (pairs > 0).sum() <= 1, name
    assert population.out_of_bounds() == 0
    for name, values in population.dimensions().items():
        reference = REFERENCES[name]
        margin = WIDENED * reference.mean
        inside = (values > reference.band[0] - margin) & (values < reference.band[1] + margin)
        assert inside.mean() > 0.75, name
        assert values.mean() == pytest.approx(reference.mean, rel=0.13), name
    assert population.eyeball_left_visible().max() < 0.02
    assert population.lip_gap(0.0).max() < 1.0
    assert population.lip_gap(5.0).min() > 5.0
    assert population.lip_gap(20.0).min() > 25.0


def test_crossing_pairs_finds_what_crosses_and_nothing_else() -> None:
    floor = [[0, 0, 0], [4, 0, 0], [0, 4, 0]]
    through, above, beside = (
        [[1, 1, -1], [1, 1, 1], [2, 1, 1]],
        [[1, 1, 1], [1, 2, 2], [2, 1, 2]],
        [[3, 3, -1], [3, 3, 1], [4, 3, 1]],
    )
    vertices = np.array([*floor, *through, *above, *beside], float)
    faces = np.arange(12).reshape(4, 3)
    assert crossing_pairs(vertices, faces).tolist() in ([[0, 1]], [[1, 0]])
    faces[1, 0] = 0  # neighbours share a vertex: they touch by right
    assert len(crossing_pairs(vertices, faces)) == 0


def test_lips_stay_closed_on_every_subject(head: AssetBundle) -> None:
    """Nothing of mouth or teeth shows from the front at rest."""
    teeth_and_bag: NDArray[np.bool_] = head.uv[:, 1] < 0.125
    inner = np.asarray(teeth_and_bag[head.uv_faces].all(axis=1))
    for vertices in sampled(head, 5, seed=9):
        points = landmarks(head, vertices)[[48, 62, 54], :2]
        across = np.concatenate([np.linspace(points[0], points[1], 12)[2:], np.linspace(points[1], points[2], 12)[:-2]])
        grid = (across[:, None] + np.array([0.0, 1.0])[None] * np.linspace(-6, 6, 10)[:, None] * MM).reshape(-1, 2)
        triangles = front_most(grid, vertices, head.faces)
        assert inner[triangles].mean() < 0.015  # the lips keep 0.04 mm apart; at 0.2 mm it is 0.04


def test_leading_components_are_sex_and_age(head: AssetBundle) -> None:
    def measures(coefficients: dict[int, float]) -> dict[str, float]:
        vertices = head.v_template.astype(float).copy()
        for index, value in coefficients.items():
            vertices += value * head.shape_basis[..., index]
        points = landmarks(head, vertices) / MM
        return {
            "jaw": points[12, 0] - points[4, 0],
            "nose": points[27, 1] - points[33, 1],
            "lips": points[51, 1] - points[57, 1],
            "eye over brow": points[19, 1] - points[37, 1],
        }

    man, woman = measures({0: 1.0}), measures({0: -1.0})
    assert man["jaw"] > woman["jaw"] + 5
    assert man["nose"] > woman["nose"] + 1
    assert man["eye over brow"] < woman["eye over brow"]
    old, young = measures({1: 1.0}), measures({1: -1.0})
    assert old["lips"] < young["lips"] - 1
    variance = (head.shape_basis.astype(float) ** 2).sum((0, 1))
    assert variance[2:10].mean() > 5 * variance[-10:].mean()


def test_expressions_do_what_they_are_called(head: AssetBundle) -> None:
    rest = landmarks(head, head.v_template.astype(float)) / MM

    def change(name: str) -> Array:
        return landmarks(head, with_expression(head, **{name: 1.0})) / MM - rest

    assert change("smile")[[48, 54], 1].min() > 3
    assert change("frown")[[48, 54], 1].max() < -3
    assert change("brow_raise")[17:27, 1].min() > 2
    assert change("brow_lower")[[21, 22], 1].max() < -2
    assert change("pucker")[54, 0] < -4
    assert change("pucker")[62, 2] > 2
    assert change("mouth_left")[57, 0] > 3
    assert change("mouth_right")[57, 0] < -3
    left_only = change("smile_left")
    assert left_only[54, 1] > 3 > 0.5 > abs(left_only[48, 1])


def test_albedo_is_skin(head: AssetBundle) -> None:
    mean, basis = head.albedo_mean, head.albedo_basis
    assert mean is not None
    assert basis is not None
    assert mean.min() >= 0
    assert mean.max() <= 1
    cheek = (slice(None), slice(120, 128), slice(80, 90))
    red, green, blue = mean[cheek].mean((1, 2))
    assert red > green > blue
    rng = np.random.default_rng(5)
    tones = []
    for _ in range(40):
        albedo = mean + np.tensordot(rng.standard_normal(50).astype(np.float32), basis, 1)
        skin = albedo[:, head.face_mask > 0.5]
        assert ((skin < -0.02) | (skin > 1.05)).mean() < 0.1
        tones.append(albedo[cheek].mean())
    assert max(tones) > 0.65
    assert min(tones) < 0.40


# ---------------------------------------------------------------- cache


def test_same_bytes_in_another_process_with_numpy_only(head: AssetBundle, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('scipy', 'cv2', 'skimage', 'numba', 'PIL', 'safetensors'): sys.modules[name] = None\n"
        "from deca_core.assets.procedural import procedural_head\n"
        "print(procedural_head().hash)\n"
    )
    environment = {**os.environ, "DECA_CACHE": str(tmp_path), "PYTHONHASHSEED": "7"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.strip() == head.hash


def test_cached_head_is_the_built_one(head: AssetBundle, cache: Path) -> None:
    stored = build_in(cache)
    assert stored is not head
    assert stored.hash == head.hash
    assert stored.source == head.source
    assert stored.expression_names == head.expression_names


def test_damaged_cache_is_rebuilt(head: AssetBundle, cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECA_CACHE", str(cache))
        arrays = procedural.cache_folder() / ARRAYS_FILE
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 0xFF
    arrays.write_bytes(data)
    assert build_in(cache, head) is head
    assert arrays.read_bytes() != bytes(data)
    arrays.unlink()
    assert build_in(cache, head) is head
    assert arrays.is_file()
    assert [path.name for path in cache.iterdir()] == [arrays.parent.name]  # no leftovers


def test_unwritable_cache_costs_nothing_but_time(head: AssetBundle, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert build_in(blocked, head) is head
