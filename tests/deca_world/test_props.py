"""Hair, clothes and occluders fit every head, keep off the face, and are the same for the same generator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from deca_core.assets import AssetBundle, procedural_head
from deca_core.raster import rasterize
from deca_world.clothing import NECKLINES, Clothing, build_clothing, sample_clothing
from deca_world.hair import FAMILIES, HairStyle, build_hair, sample_hair
from deca_world.occluders import GLASSES, PERCENT, Occluder, build_occluders, sample_occluders
from deca_world.props import COLUMNS, ROWS, Prop, grid_faces, grid_uv, head_frame, landmarks, to_texels, tube

HEADS = 4  # the mean and three N(0, I) heads
VIEW, VIEW_SCALE = 160, 6.0  # pixels, and image units per metre, of the frontal coverage image
KINDS = [Occluder("glasses", style, 5) for style in GLASSES] + [Occluder(k, "", 5) for k in PERCENT if k != "glasses"]


@pytest.fixture(scope="module")
def bundle() -> AssetBundle:
    return procedural_head()


@pytest.fixture(scope="module")
def heads(bundle: AssetBundle) -> list[np.ndarray]:
    codes = np.random.default_rng(3).standard_normal((HEADS, 100)).astype(np.float32)
    codes[0] = 0
    return [bundle.v_template + bundle.shape_basis @ code for code in codes]


def styles_of(family: str, count: int, seed: int = 0) -> list[HairStyle]:
    """Styles of one family, drawn by the sampler itself."""
    rng = np.random.default_rng([seed, sorted(FAMILIES).index(family)])
    found: list[HairStyle] = []
    male = np.sign(FAMILIES[family].male) * 1.5
    while len(found) < count:
        style = sample_hair(rng, (float(rng.normal()), male))
        if style.family == family:
            found.append(style)
    return found


def clothes_of(neckline: str) -> Clothing:
    rng = np.random.default_rng(sorted(NECKLINES).index(neckline))
    while (clothing := sample_clothing(rng)).neckline != neckline:
        pass
    return clothing


def assert_sound(prop: Prop) -> None:
    count = len(prop.vertices)
    assert prop.vertices.shape == (count, 3)
    assert prop.vertices.dtype == np.float32
    assert prop.weights.shape == (count, 5)
    assert prop.uv.shape == (count, 2)
    assert prop.texture.dtype == np.float32
    assert prop.texture.shape[2] == 4
    assert min(prop.texture.shape[:2]) >= 2
    assert np.isfinite(prop.vertices).all()
    assert 0 <= prop.faces.min() <= prop.faces.max() < count
    assert len(prop.faces) <= 8000
    np.testing.assert_allclose(prop.weights.sum(1), 1, atol=1e-6)
    for values in (prop.uv, prop.texture):
        assert values.min() >= 0
        assert values.max() <= 1
    assert 0 <= prop.specular <= 1


def opacity_at(props: list[Prop], points: np.ndarray) -> np.ndarray:
    """Largest opacity of any prop in front of points (N,3), seen from in front."""
    result = np.zeros(len(points))
    pixels = ((VIEW_SCALE * points[:, :2] * [1, -1] + 1) * VIEW / 2).astype(int)
    for prop in props:
        image = np.stack(
            [VIEW_SCALE * prop.vertices[:, 0], -VIEW_SCALE * prop.vertices[:, 1], -prop.vertices[:, 2]], -1
        )
        face_map = rasterize(torch.from_numpy(image)[None], torch.from_numpy(prop.faces), VIEW, VIEW)[0].numpy()
        face = face_map[pixels[:, 1], pixels[:, 0]]
        corners = prop.faces[face]
        nearer = prop.vertices[corners, 2].max(1) > points[:, 2]
        u, v = np.moveaxis(prop.uv[corners].mean(1), -1, 0)
        height, width = prop.texture.shape[:2]
        row, column = ((1 - v) * height).astype(int).clip(0, height - 1), (u * width).astype(int).clip(0, width - 1)
        result = np.maximum(result, np.where((face >= 0) & nearer, prop.texture[row, column, 3], 0))
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_hair_fits_every_head(bundle: AssetBundle, heads: list[np.ndarray], family: str) -> None:
    for head in heads:
        for style in styles_of(family, 2):
            props = build_hair(bundle, head, style)
            assert {"scalp", "hair"} <= {prop.name for prop in props}
            for prop in props:
                assert_sound(prop)
                assert prop.follows_head
                # Hair stays within reach of its head: no further aside, above or behind than 16 cm, and never a
                # vertex inside the skull.
                assert np.abs(prop.vertices[:, 0]).max() < np.abs(head[:, 0]).max() + 0.12
                assert prop.vertices[:, 1].max() < head[:, 1].max() + 0.16
                assert prop.vertices[:, 2].min() > head[:, 2].min() - 0.16
                skull = head[head[:, 1] > landmarks(bundle, head)[27, 1]].mean(0)
                assert np.linalg.norm(prop.vertices - skull, axis=1).min() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_hair_keeps_off_the_face(bundle: AssetBundle, heads: list[np.ndarray], family: str) -> None:
    for head in heads:
        features = landmarks(bundle, head)[27:68]  # nose, eyes, mouth
        for style in styles_of(family, 3, seed=1):
            assert opacity_at(build_hair(bundle, head, style), features).max() < 0.05, style


def test_a_fringe_covers_the_forehead_and_bare_heads_do_not(bundle: AssetBundle, heads: list[np.ndarray]) -> None:
    points = landmarks(bundle, heads[0])
    forehead = points[[19, 24]] + [0, 0.022, -0.004]
    fringe = dataclasses.replace(styles_of("fringe", 1)[0], fringe=1.0, sweep=0.0)
    swept = dataclasses.replace(styles_of("swept back", 1)[0], fringe=0.0)
    hair = [[p for p in build_hair(bundle, heads[0], style) if p.name == "hair"] for style in (fringe, swept)]
    assert opacity_at(hair[0], forehead).min() > 0.9
    assert opacity_at(hair[1], forehead).max() < 0.05


def test_lengths_are_lengths(bundle: AssetBundle, heads: list[np.ndarray]) -> None:
    style = styles_of("long straight", 1)[0]
    frame = head_frame(bundle)
    for drop in (1.0, 2.0):
        hair = build_hair(bundle, heads[0], dataclasses.replace(style, drop=drop))[1]
        assert hair.vertices[:, 1].min() == pytest.approx(frame.brow - drop * frame.unit, abs=0.003)


def test_hair_changes_the_outline(bundle: AssetBundle, heads: list[np.ndarray]) -> None:
    """Hair of different families differs by centimetres in height or width of the head's outline."""
    extents = []
    for family in FAMILIES:
        vertices = np.concatenate([p.vertices for p in build_hair(bundle, heads[0], styles_of(family, 1)[0])])
        extents.append([np.ptp(vertices[:, 0]), vertices[:, 1].max(), vertices[:, 1].min()])
    spread = np.std(extents, axis=0)
    assert spread[0] > 0.015
    assert spread[1] > 0.008
    assert spread[2] > 0.04


def test_sampled_hair_is_wide_and_follows_the_hint() -> None:
    rng = np.random.default_rng(0)
    neutral = {sample_hair(rng).family for _ in range(400)}
    assert neutral == set(FAMILIES)
    long_ = ("bob", "long straight", "long wavy")
    share = {male: np.mean([sample_hair(rng, (0.0, male)).family in long_ for _ in range(300)]) for male in (-1.5, 1.5)}
    assert share[-1.5] > 4 * share[1.5] + 0.2
    grey = {age: np.mean([min(sample_hair(rng, (age, 0.0)).colour) for _ in range(200)]) for age in (-1.0, 2.0)}
    assert grey[2.0] > 2 * grey[-1.0]


@pytest.mark.parametrize("neckline", NECKLINES)
def test_clothes_close_the_neck(bundle: AssetBundle, heads: list[np.ndarray], neckline: str) -> None:
    for head in heads:
        props = build_clothing(bundle, head, clothes_of(neckline))
        for prop in props:
            assert_sound(prop)
            assert not prop.follows_head
            assert (prop.weights[:, 0] == 1).all()
        torso = props[0].vertices
        lowest_of_head = head[:, 1].min()
        assert torso[:, 1].max() > lowest_of_head + 0.01  # overlaps the end of the neck ...
        assert torso[:, 1].min() < lowest_of_head - 0.15  # ... and leaves the image below
        assert torso[:, 1].max() < landmarks(bundle, head)[33, 1]  # but does not reach the face
        assert 0.34 < np.ptp(torso[:, 0]) < 0.56  # shoulders, metres (biacromial breadth plus arms)


@pytest.mark.parametrize("occluder", KINDS, ids=lambda o: o.style or o.kind)
def test_occluders_lie_on_every_head(bundle: AssetBundle, heads: list[np.ndarray], occluder: Occluder) -> None:
    for head in heads:
        for prop in build_occluders(bundle, head, [occluder]):
            assert_sound(prop)
            assert (prop.weights[:, 1] == 1).all()
            assert np.abs(prop.vertices[:, 0]).max() < 0.2
            assert prop.vertices[:, 2].max() < head[:, 2].max() + 0.3


@pytest.mark.parametrize("style", GLASSES)
def test_lenses_are_in_front_of_the_eyes(bundle: AssetBundle, heads: list[np.ndarray], style: str) -> None:
    for head in heads:
        points = landmarks(bundle, head)
        eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
        lenses = [p for p in build_occluders(bundle, head, [Occluder("glasses", style, 2)]) if p.name == "lenses"]
        assert (opacity_at(lenses, eyes) > 0).all()
        for eye in eyes:
            nearest = lenses[0].vertices[np.linalg.norm(lenses[0].vertices[:, :2] - eye[:2], axis=1).argmin()]
            assert 0.008 < nearest[2] - eye[2] < 0.035


def test_occluders_are_as_frequent_as_stated() -> None:
    rng = np.random.default_rng(1)
    drawn = [o.kind for _ in range(4000) for o in sample_occluders(rng)]
    for kind, percent in PERCENT.items():
        assert drawn.count(kind) / 40 == pytest.approx(percent, abs=2.0)
    assert sample_occluders(np.random.default_rng(2), rate=0.0) == []


def test_same_generator_same_props(bundle: AssetBundle, heads: list[np.ndarray]) -> None:
    def everything() -> list[Prop]:
        rng = np.random.default_rng([7, 1])
        hair, clothing = sample_hair(rng, (0.3, -1.0)), sample_clothing(rng)
        props = build_hair(bundle, heads[1], hair) + build_clothing(bundle, heads[1], clothing)
        return props + build_occluders(bundle, heads[1], sample_occluders(rng, rate=20))

    first, second = everything(), everything()
    assert len(first) == len(second) > 4
    for a, b in zip(first, second, strict=True):
        for name in ("vertices", "faces", "uv", "weights", "texture"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_frame_is_on_the_skin(bundle: AssetBundle, heads: list[np.ndarray]) -> None:
    from scipy.spatial import cKDTree

    share = np.random.default_rng(0).dirichlet(np.ones(3), (len(bundle.faces), 12))
    for head in heads:
        surface = head_frame(bundle).surface(head)
        assert surface.shape == (ROWS, COLUMNS, 3)
        skin = np.einsum("fnk,fkd->fnd", share, head[bundle.faces]).reshape(-1, 3)
        distance = cKDTree(skin).query(surface.reshape(-1, 3))[0]
        assert np.quantile(distance, 0.99) < 0.004
        assert distance.max() < 0.008
        np.testing.assert_allclose(surface[:, 0], surface[:, -1], atol=1e-5)  # the seam behind is closed


def test_grid_faces_look_outwards_and_share_the_texture() -> None:
    rows, columns = 3, 4
    y, x = np.meshgrid(-np.arange(rows), np.arange(columns), indexing="ij")
    points = np.stack([x, y, 0 * x], -1).reshape(-1, 3)
    a, b, c = points[grid_faces(rows, columns)].transpose(1, 0, 2)
    assert (np.cross(b - a, c - a)[:, 2] == 1).all()
    u, v = grid_uv(rows, columns).T.reshape(2, rows, columns)
    image = to_texels(2 * u + 3 * v, 60, 80)
    at = (np.arange(80) + 0.5) / 80, 1 - (np.arange(60) + 0.5) / 60
    np.testing.assert_allclose(image, 2 * at[0][None] + 3 * at[1][:, None], atol=1e-5)


def test_tube_has_its_radius() -> None:
    path = np.stack([np.linspace(0, 1, 9), np.zeros(9), np.zeros(9)], -1)
    vertices, faces, uv = tube(path, 0.2, sides=12)
    np.testing.assert_allclose(np.hypot(vertices[:, 1], vertices[:, 2]), 0.2, atol=1e-6)
    assert len(faces) == 2 * 8 * 12
    assert len(uv) == len(vertices)
