"""Figures against closed forms, against a plain second computation, and against what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from deca_core.appearance import shading
from deca_core.closest import nearest_on_triangle
from deca_core.metrics import (
    MetricError,
    Similarity,
    Surface,
    aligned_distance,
    correlation,
    cumulative,
    face_sphere,
    fit_similarity,
    interocular_error,
    lid_error,
    light_error,
    normal_error,
    normalized_mean_error,
    pooled,
    psnr,
    rms_difference,
    rotation_error,
    scan_distances,
    shape_spread,
    strength_error,
    to_millimetres,
)

# Outer and inner corners of the right eye, inner and outer of the left, nose bottom, mouth corners: millimetres.
SEVEN_POINTS = np.array(
    [[-45, 35, -12], [-16, 34, -6], [16, 34, -6], [45, 35, -12], [0, 0, 6], [-25, -22, 0], [25, -22, 0]], float
)


def sphere(radius: float, rings: int = 60, sectors: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """A closed sphere of triangles, its vertices on it."""
    polar = np.linspace(0, np.pi, rings + 1)[:, None]
    around = np.linspace(0, 2 * np.pi, sectors, endpoint=False)[None]
    points = np.stack(
        [np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar) + 0 * around], axis=-1
    )
    index = np.arange((rings + 1) * sectors).reshape(rings + 1, sectors)
    a, b = index[:-1], index[1:]
    c, d = np.roll(a, -1, axis=1), np.roll(b, -1, axis=1)
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([c, b, d], -1).reshape(-1, 3)])
    return radius * points.reshape(-1, 3), faces


def face_like(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bumpy dome, millimetres: no symmetry lets it slide on itself."""
    count = 41
    axis = np.linspace(-80, 80, count)
    x, y = (grid.ravel() for grid in np.meshgrid(axis, axis))
    rng = np.random.default_rng(seed)
    z = 30 - (x**2 + 0.6 * y**2) / 150
    for _ in range(12):
        z += rng.uniform(-9, 9) * np.exp(-((x - rng.uniform(-50, 50)) ** 2 + (y - rng.uniform(-50, 50)) ** 2) / 300)
    index = np.arange(count**2).reshape(count, count)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]))
    return np.stack([x, y, z], axis=1), np.concatenate([np.stack([a, b, c], 1), np.stack([c, b, d], 1)])


def brute_force(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distances (N,) to triangles (F,3,3): every point against every triangle, as a bounded quadratic in numpy."""
    best = np.full(len(points), np.inf)
    for a, b, c in corners:
        ab, ac, ap = b - a, c - a, points - a
        gram = np.array([[ab @ ab, ab @ ac], [ab @ ac, ac @ ac]])
        candidates = []
        if np.linalg.det(gram) > 1e-12:
            weights = np.linalg.solve(gram, np.stack([ap @ ab, ap @ ac]))
            foot = a + weights.T @ np.stack([ab, ac])
            inside = (weights >= 0).all(axis=0) & (weights.sum(axis=0) <= 1)
            candidates.append(np.where(inside, np.linalg.norm(points - foot, axis=1), np.inf))
        for start, end in ((a, b), (b, c), (c, a)):
            edge = end - start
            share = np.clip((points - start) @ edge / max(edge @ edge, 1e-300), 0, 1)
            candidates.append(np.linalg.norm(points - start - share[:, None] * edge, axis=1))
        best = np.minimum(best, np.min(candidates, axis=0))
    return best


# --- distance to a surface ---


def test_distance_is_that_of_every_point_against_every_triangle():
    rng = np.random.default_rng(1)
    corners = rng.normal(size=(150, 3, 3)) * 0.3 + rng.normal(size=(150, 1, 3)) * 2
    corners[7] = corners[7, :1]  # a point
    corners[8, 2] = 0.3 * corners[8, 0] + 0.7 * corners[8, 1]  # a line
    points = rng.normal(size=(400, 3)) * 3
    surface = Surface(corners.reshape(-1, 3), np.arange(450).reshape(-1, 3))
    distance, where, face = surface.nearest(points)
    assert distance == pytest.approx(brute_force(points, corners), rel=1e-9)
    assert np.linalg.norm(points - where, axis=1) == pytest.approx(distance, rel=1e-12)
    for index in range(0, 400, 40):  # the named triangle is the one with the nearest point
        assert brute_force(where[index : index + 1], corners[face[index] : face[index] + 1])[0] < 1e-9


def test_a_guess_spares_work_and_changes_nothing():
    vertices, faces = face_like()
    surface = Surface(vertices, faces)
    points = np.random.default_rng(2).normal(size=(300, 3)) * 60
    plain = surface.nearest(points)
    guessed = surface.nearest(points, np.random.default_rng(3).integers(len(faces), size=300))
    assert (plain[0] == guessed[0]).all()


def test_plane_and_corners():
    corners = np.array([[0.0, 0, 0], [4, 0, 0], [0, 3, 0]])
    cases = {(1, 1, 2): 2.0, (-3, -4, 0): 5.0, (6, 0, 0): 2.0, (1, -2, 0): 2.0, (4, 3, 0): 2.4, (0, 5, 1): 5**0.5}
    for point, expected in cases.items():
        out = np.empty(3)
        squared = nearest_on_triangle(np.array(point, float), corners, out, np.empty(3))
        assert squared**0.5 == pytest.approx(expected)
    surface = Surface(corners * 100 - [[100, 100, 0]], np.array([[0, 1, 2]]))
    assert surface.nearest(np.array([[10.0, -20, 7.5], [0, 0, -0.25]]))[0] == pytest.approx([7.5, 0.25])


def test_a_surface_without_triangles_or_with_nan_is_refused():
    with pytest.raises(MetricError, match="nothing to measure"):
        Surface(np.zeros((3, 3)), np.zeros((0, 3), int))
    with pytest.raises(MetricError, match="not all of them finite"):
        Surface(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))


# --- NoW ---


def test_sphere_of_known_offset():
    """A scan one millimetre outside a sphere all round: rigid alignment cannot take that away, a scale can."""
    vertices, faces = sphere(60.0)
    surface = Surface(vertices, faces)
    scan = sphere(61.0, 25, 33)[0]
    landmarks = SEVEN_POINTS * 2 - [0, 40, 0]  # their sphere contains all of it
    centre, radius = face_sphere(landmarks)
    assert (np.linalg.norm(scan - centre, axis=1) < radius).all()
    metrical = scan_distances(scan, landmarks, surface, landmarks, scaled=False)
    assert len(metrical) == len(scan)
    assert metrical == pytest.approx(np.full(len(scan), 1.0), abs=0.09)  # the triangles lie up to 0.08 mm inside
    assert pooled(scan_distances(scan, landmarks, surface, landmarks)).mean < 0.03


def test_plane_of_known_offset():
    """The alignment takes a shift away; a ridge of known height in a plane stays."""
    vertices = np.array([[-200.0, -200, 0], [200, -200, 0], [-200, 200, 0], [200, 200, 0]])
    surface = Surface(vertices, np.array([[0, 1, 2], [2, 1, 3]]))
    flat = SEVEN_POINTS * [1, 1, 0]
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(-60, 61, 3.0), np.arange(-60, 61, 3.0)))
    scan = np.stack([x, y, np.where(np.abs(x) % 2 == 1, 1.0, -1.0)], axis=1)
    distance = scan_distances(scan + np.array([0, 0, 5]), flat + np.array([0, 0, 5]), surface, flat, scaled=False)
    assert distance == pytest.approx(np.ones(len(distance)), abs=0.05)


def test_sphere_of_the_face():
    centre, radius = face_sphere(SEVEN_POINTS)
    assert centre == pytest.approx(np.array([0, 0, 6]) + 0.3 * np.array([0, 34, -12]))
    assert radius == pytest.approx(1.4 * (90 + np.hypot(34, 12)) / 2)
    vertices, faces = face_like()
    far = np.array([[0.0, 0, -500]])
    distances = scan_distances(np.concatenate([vertices, far]), SEVEN_POINTS, Surface(vertices, faces), SEVEN_POINTS)
    inside = np.linalg.norm(vertices - centre, axis=1) <= radius
    assert 0 < inside.sum() < len(vertices)
    assert len(distances) == inside.sum()
    with pytest.raises(MetricError, match="no vertex"):
        scan_distances(far, SEVEN_POINTS, Surface(vertices, faces), SEVEN_POINTS)


def moved(seed: int, scale: float = 1.0) -> Similarity:
    rng = np.random.default_rng(seed)
    return Similarity(scale, Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3) * 300)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_perfect_prediction_has_no_error_at_any_place(scaled):
    vertices, faces = face_like()
    rng = np.random.default_rng(5)
    rough = SEVEN_POINTS + rng.normal(size=(7, 3)) * 2  # landmarks are picked by hand: only a start
    elsewhere = moved(4, 0.13 if scaled else 1.0)
    surface = Surface(elsewhere(vertices), faces)
    found = pooled(scan_distances(vertices, SEVEN_POINTS, surface, elsewhere(rough), scaled))
    assert found.mean < 1e-4
    assert found.count > 800


@pytest.mark.parametrize("scaled", [True, False])
def test_error_does_not_depend_on_place_triangles_or_order(scaled):
    vertices, faces = face_like()
    other, _ = face_like(1)
    rng = np.random.default_rng(6)
    shuffled = rng.permuted(faces[rng.permutation(len(faces))], axis=1)
    usual = pooled(scan_distances(other, SEVEN_POINTS, Surface(vertices, faces), SEVEN_POINTS, scaled))
    assert usual.mean > 0.5
    place = moved(7)
    variants = {
        "triangles": scan_distances(other, SEVEN_POINTS, Surface(vertices, shuffled), SEVEN_POINTS, scaled),
        "place": scan_distances(place(other), place(SEVEN_POINTS), Surface(vertices, faces), SEVEN_POINTS, scaled),
        "order": scan_distances(rng.permutation(other), SEVEN_POINTS, Surface(vertices, faces), SEVEN_POINTS, scaled),
    }
    for name, distances in variants.items():
        found = pooled(distances)
        assert (found.median, found.mean) == pytest.approx((usual.median, usual.mean), rel=2e-4), name


def test_the_prediction_may_have_any_size_unless_metrical():
    vertices, faces = face_like()
    other, _ = face_like(1)
    grown = Surface(1.3 * vertices, faces)
    usual = scan_distances(other, SEVEN_POINTS, Surface(vertices, faces), SEVEN_POINTS)
    assert pooled(scan_distances(other, SEVEN_POINTS, grown, 1.3 * SEVEN_POINTS)).mean == pytest.approx(
        pooled(usual).mean, rel=2e-4
    )
    metrical = scan_distances(vertices, SEVEN_POINTS, grown, 1.3 * SEVEN_POINTS, scaled=False)
    assert pooled(metrical).mean > 1.0
    # Errors are in the scan's own size, not in that of the prediction.
    double = scan_distances(2 * other, 2 * SEVEN_POINTS, Surface(vertices, faces), SEVEN_POINTS)
    assert pooled(double).mean == pytest.approx(2 * pooled(usual).mean, rel=2e-4)


@pytest.mark.parametrize(("unit", "factor"), [("m", 1000.0), ("cm", 10.0), ("mm", 1.0)])
def test_units_of_a_scan_are_inferred_from_its_eyes_or_declared(unit, factor):
    assert to_millimetres(SEVEN_POINTS / factor) == factor
    assert to_millimetres(SEVEN_POINTS, unit) == factor


def test_a_scan_of_no_known_unit_is_refused():
    with pytest.raises(MetricError, match="scan_units"):
        to_millimetres(SEVEN_POINTS * 25.4)


def test_pooling_and_cumulative_curve():
    found = pooled(np.array([1.0, 2.0, 6.0]))
    assert (found.median, found.mean, found.count) == (2.0, 3.0, 3)
    assert found.std == pytest.approx(np.sqrt(14 / 3))
    assert cumulative(np.array([1.0, 2.0, 6.0, 7.0]), np.array([0.5, 2.0, 9.0])).tolist() == [0, 50, 100]
    assert pooled(np.array([])).count == 0


# --- against a known truth ---


def test_similarity_is_found_again():
    rng = np.random.default_rng(8)
    points, place = rng.normal(size=(9, 3)), moved(9, 2.5)
    found = fit_similarity(points, place(points))
    assert found.scale == pytest.approx(2.5)
    assert found.rotation == pytest.approx(place.rotation)
    other = points * [-1, 1, 1] + rng.normal(size=(9, 3)) * 0.1  # a mirror image, which no turn reaches
    best, _ = Rotation.align_vectors(other - other.mean(axis=0), points - points.mean(axis=0))
    assert fit_similarity(points, other).rotation == pytest.approx(best.as_matrix(), abs=1e-6)
    assert aligned_distance(points, place(points)) < 1e-9
    assert aligned_distance(points, place(points), scaled=False) > 0.5


def test_landmark_error_is_relative_to_the_size_of_the_face():
    square = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [4.0, 9.0], [0.0, 9.0]]])  # sqrt(4 * 9) = 6
    off = square + torch.tensor([3.0, 4.0])
    assert normalized_mean_error(square, square).tolist() == [0]
    both = normalized_mean_error(torch.cat([square, 10 * square]), torch.cat([off, 10 * off]))
    assert torch.allclose(both, torch.tensor([5 / 6, 5 / 6]))


def test_landmark_error_is_relative_to_the_eyes():
    truth = torch.zeros(1, 68, 2)
    truth[0, 36], truth[0, 45] = torch.tensor([10.0, 0.0]), torch.tensor([60.0, 0.0])
    assert interocular_error(truth, truth + torch.tensor([3.0, 4.0])).tolist() == pytest.approx([5 / 50])


def test_lid_error_compares_the_gaps():
    truth = torch.zeros(1, 68, 2)
    truth[0, 36], truth[0, 45] = torch.tensor([10.0, 0.0]), torch.tensor([60.0, 0.0])
    upper, lower = [37, 38, 43, 44], [41, 40, 47, 46]
    truth[0, lower] = torch.tensor([0.0, 6.0])  # open by 6
    assert lid_error(truth, truth + 7).tolist() == [0]  # wherever the eyes are
    shut = truth.clone()
    shut[0, lower] = shut[0, upper]
    assert lid_error(truth, shut).tolist() == pytest.approx([6 / 50])
    one = truth.clone()
    one[0, 41] = torch.tensor([0.0, 8.0])  # one pair of four, two too wide
    assert lid_error(truth, one).tolist() == pytest.approx([0.5 / 50])


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 30.0, 179.9])
def test_rotation_error_is_the_angle_between(degrees):
    first = Rotation.random(random_state=1)
    second = first * Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0.0, 0.8]))
    vectors = [torch.from_numpy(turn.as_rotvec())[None] for turn in (first, second)]
    assert float(rotation_error(*vectors)[0]) == pytest.approx(degrees, abs=1e-5)


def test_light_error_is_that_of_shaded_spheres():
    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.randn(2, 2, 9, 3, generator=generator).double()
    normals = torch.nn.functional.normalize(torch.randn(1, 3, 1, 200_000, generator=generator).double(), dim=1)
    seen, true = (shading(normals.expand(2, -1, -1, -1), light) for light in (predicted, truth))
    expected = ((seen - true).square().mean((1, 2, 3)) / true.square().mean((1, 2, 3))).sqrt()
    assert light_error(predicted, truth).numpy() == pytest.approx(expected.numpy(), rel=0.01)
    assert float(light_error(truth, truth).max()) == 0


def test_maps_are_compared_inside_the_mask():
    rng = np.random.default_rng(10)
    a, b = rng.normal(size=(2, 40, 40))
    mask = rng.uniform(size=(40, 40)) > 0.4
    assert correlation(a, b, mask) == pytest.approx(np.corrcoef(a[mask], b[mask])[0, 1])
    assert correlation(a, 3 * a + 1 + 100 * ~mask, mask) == pytest.approx(1.0)
    assert np.isnan(correlation(a, np.zeros_like(a), mask))
    assert rms_difference(a, a + 2 + 100 * ~mask, mask) == pytest.approx(2.0)
    assert strength_error(-0.25 * a + 100 * ~mask, a, mask) == pytest.approx(0.75)
    assert strength_error(1.5 * a, a, mask) == pytest.approx(0.5)
    assert np.isnan(strength_error(a, np.zeros_like(a), mask))
    images = rng.uniform(size=(2, 3, 40, 40))
    assert psnr(images[0], images[0] + 0.1 + 5 * ~mask, mask) == pytest.approx(20.0)


def test_normal_error_is_an_angle():
    up = np.zeros((3, 4, 4))
    up[2] = 1
    tilted = np.zeros((3, 4, 4))
    tilted[0], tilted[2] = np.sin(0.01), np.cos(0.01)
    mask = np.ones((4, 4), bool)
    assert normal_error(up, tilted, mask) == pytest.approx(np.degrees(0.01))
    assert normal_error(up, up, mask) == 0


def test_spread_of_shapes_is_that_of_all_pairs():
    rng = np.random.default_rng(11)
    shapes, basis = rng.normal(size=(11, 5)), rng.normal(size=(30, 3, 5))
    subjects = list("aaaabbbcccc")
    heads = np.einsum("vck,nk->nvc", basis, shapes)
    pairs = {True: [], False: []}
    for i in range(11):
        for j in range(i):
            square = np.square(heads[i] - heads[j]).sum(axis=1).mean()
            pairs[subjects[i] == subjects[j]].append(square)
    expected = [np.sqrt(np.mean(pairs[same])) for same in (True, False)]
    assert shape_spread(shapes, subjects, basis) == pytest.approx(expected)
    same = np.repeat(shapes[:3], 3, axis=0)
    within, between = shape_spread(same, list("aaabbbccc"), basis)
    assert within == pytest.approx(0, abs=1e-6)
    assert between > 1
    assert np.isnan(shape_spread(shapes, [str(i) for i in range(11)], basis)[0])
