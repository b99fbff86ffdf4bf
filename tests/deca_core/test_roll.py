"""Rolled faces: codes of the upright crop, expressed in the turned one; by projection, by light, by the world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deca_core import Codes
from deca_core.appearance import shading
from deca_core.camera import to_pixels
from deca_core.crop import CropError, crop_transform, square_from_landmarks, warp
from deca_core.flame import rotation_matrix
from deca_core.roll import NEVER, UPRIGHT_FROM, reframed, roll_of, upright_transform
from deca_world import Limits, World
from tests.deca_core.export.conftest import some_codes

SIZE = 384


def turned(degrees: float, size: int = SIZE) -> np.ndarray:
    """Pixels (2,3) to those of the image turned counter-clockwise about its middle."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    linear = np.array([[cosine, sine], [-sine, cosine]])  # y down
    middle = np.full(2, (size - 1) / 2)
    return np.column_stack([linear, middle - linear @ middle])


def moved(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    return points @ transform[:, :2].T + transform[:, 2]


def in_source(points: torch.Tensor, transform: np.ndarray) -> np.ndarray:
    """Points (N,2) in a crop's [-1, 1] as pixels of the source."""
    pixels = to_pixels(points.double()).numpy()
    return (pixels - transform[:, 2]) @ np.linalg.inv(transform[:, :2]).T


@pytest.fixture(scope="module")
def photographs(bundle):
    world = World(bundle)
    subjects = [world.subject(2**20, number) for number in range(3)]
    limits = Limits(yaw=(0, 35), occluders=False)
    return [world.photograph(one, world.shot(one, 0, limits), SIZE) for one in subjects]


def test_roll_is_that_of_the_image(photographs):
    for photograph in photographs:
        level = roll_of(photograph.landmarks)
        head = rotation_matrix(photograph.codes.pose[0, :3]).numpy()
        assert abs(level - np.degrees(np.arctan2(-head[0, 1], head[1, 1]))) < 4
        for degrees in (-170, -45, 10, 90, 179):
            found = roll_of(moved(photograph.landmarks, turned(degrees)))
            assert (found - level - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_up_to_the_limit_the_crop_is_the_release_s(photographs):
    for photograph in photographs:
        level = roll_of(photograph.landmarks)
        for degrees, same in ((0, True), (UPRIGHT_FROM - 0.5, True), (UPRIGHT_FROM + 0.5, False), (150, False)):
            points = moved(photograph.landmarks, turned(degrees - level))
            release = crop_transform(square_from_landmarks(points))
            found = upright_transform(points)
            assert np.array_equal(found, release) == same
            assert np.array_equal(upright_transform(points, NEVER), release)
            if not same:
                crop = moved(points, found)
                assert roll_of(crop) == pytest.approx(0, abs=1e-6)
                middle = (crop.min(0) + crop.max(0)) / 2
                assert middle == pytest.approx(223 / 2, abs=1e-6)
                assert np.ptp(crop, axis=0).mean() == pytest.approx(223 / 1.1 / 1.25, rel=0.01)


@torch.no_grad()
def test_codes_in_another_crop_are_the_same_head_in_the_same_light(shipped):
    rng = np.random.default_rng(0)
    codes = some_codes(4)
    codes = codes.replace(light=torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0)))
    asked = np.array([crop_transform(square_from_landmarks(rng.uniform(50, 300, (68, 2)))) for _ in range(4)])
    ways = zip(asked, (-165, -45, 0, 90), (1, 0.7, 1.2, 1), strict=True)
    seen = np.array([_about(one, degrees, scale) for one, degrees, scale in ways])
    asked[2] = seen[2]  # one crop: nothing moves
    found = reframed(codes, shipped.flame, seen, asked)
    before, after = shipped.decode(codes), shipped.decode(found)
    for index in range(4):
        for part in ("projected", "landmarks2d"):
            one, other = (getattr(out, part)[index, :, :2] for out in (before, after))
            np.testing.assert_allclose(in_source(one, seen[index]), in_source(other, asked[index]), atol=2e-3)
        # The head itself has turned about the optical axis, and nothing else of it has changed.
        turn = rotation_matrix(
            torch.tensor([0.0, 0.0, np.radians(_degrees_between(seen[index], asked[index]))])
        ).float()
        centred = [out.vertices[index] - out.vertices[index].mean(0) for out in (before, after)]
        torch.testing.assert_close(centred[0] @ turn.T, centred[1], atol=1e-6, rtol=0)
        normals = torch.nn.functional.normalize(torch.randn(3, 500), dim=0)
        lit = [
            shading(one[None, :, :, None], own.light[index : index + 1])
            for one, own in ((normals, codes), (turn @ normals, found))
        ]
        torch.testing.assert_close(lit[0], lit[1], atol=1e-5, rtol=1e-5)
    for name, value in found.items():
        assert torch.equal(value[2], getattr(codes, name)[2])
        if name in ("shape", "tex", "exp", "detail"):
            assert torch.equal(value, getattr(codes, name))


def _about(crop: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """A crop of the image turned about some point, larger or smaller."""
    spin = turned(degrees)
    return np.column_stack([scale * crop[:, :2] @ spin[:, :2], crop[:, :2] @ spin[:, 2] + crop[:, 2] + 7])


def _degrees_between(seen: np.ndarray, asked: np.ndarray) -> float:
    angles = [np.arctan2(-one[1, 0], one[0, 0]) for one in (seen, asked)]
    return float(np.degrees(angles[1] - angles[0]))


def test_codes_that_another_crop_cannot_express(shipped):
    codes, crop = some_codes(2), crop_transform(square_from_landmarks(np.random.default_rng(0).uniform(0, 99, (68, 2))))
    both = np.stack([crop, crop])
    assert reframed(codes, shipped.flame, both, both) is codes
    mirrored = np.stack([crop * [[-1], [1]], crop])
    with pytest.raises(CropError, match="more than a turn"):
        reframed(codes, shipped.flame, both, mirrored)
    with pytest.raises(CropError, match="2 codes, 1 crops seen"):
        reframed(codes, shipped.flame, crop, both)
    codes.cam[0] = torch.nan  # reported by whatever stores them
    found = reframed(codes, shipped.flame, both, np.stack([_about(crop, 40, 1), _about(crop, 40, 1)]))
    assert torch.equal(found.pose[0], codes.pose[0])
    assert not torch.equal(found.pose[1], codes.pose[1])


@pytest.mark.slow
@torch.no_grad()
def test_a_turned_photograph_is_the_same_head_turned(shipped, photographs):
    """Vertices of the turned photograph, projected into it, against the upright one's, turned."""

    def answer(photograph, degrees: float, upright_from: float) -> tuple[Codes, np.ndarray, np.ndarray]:
        spin = turned(degrees)
        image = (warp(photograph.image, spin, SIZE) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        points = moved(photograph.landmarks, spin)
        seen, asked = upright_transform(points, upright_from), crop_transform(square_from_landmarks(points))
        codes = reframed(shipped.encode(warp(image, seen)[None]), shipped.flame, seen, asked)
        return codes, in_source(shipped.decode(codes).projected[0, :, :2], asked), spin

    for photograph in photographs:
        level, places, _ = answer(photograph, 0, UPRIGHT_FROM)
        for degrees in (-90, 45, 175):
            codes, found, spin = answer(photograph, degrees, UPRIGHT_FROM)
            apart = np.linalg.norm(found - moved(places, spin), axis=1)
            assert np.median(apart) < 2, degrees  # pixels of a face 150 wide: the network sees it sampled otherwise
            expected = rotation_matrix(torch.tensor([0.0, 0.0, np.radians(degrees)])).float() @ rotation_matrix(
                level.pose[0, :3]
            )
            off = expected @ rotation_matrix(codes.pose[0, :3]).T
            assert torch.rad2deg(torch.acos(((off.trace() - 1) / 2).clamp(-1, 1))) < 4, degrees
        _, lost, spin = answer(photograph, 45, NEVER)
        assert np.median(np.linalg.norm(lost - moved(places, spin), axis=1)) > 8
