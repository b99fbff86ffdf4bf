"""Figures of one face of the embedded world: a prediction against the ground truth."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deca_core import DECA, Codes, Reconstruction
from deca_core.assets.bundle import FACE
from deca_core.camera import project, to_pixels
from deca_core.crop import warp
from deca_core.flame import FLAME
from deca_core.metrics import (
    SEVEN,
    Surface,
    aligned_distance,
    correlation,
    interocular_error,
    lid_error,
    light_error,
    normal_error,
    normalized_mean_error,
    psnr,
    rms_difference,
    rotation_error,
    scan_distances,
    strength_error,
)
from deca_core.raster import rasterize
from deca_core.render import sample_uv, vertex_normals
from deca_core.training import FACING
from deca_world import Subject, WrinkleModel
from tasks.measure.methods import FaceCrop
from tasks.measure.world_truth import TrueFace

MM = 1000.0
SCANNER_YAWS = (-75.0, -40.0, 0.0, 40.0, 75.0)  # degrees: from where a scanner looks at a face
SCANNER_PIXELS = 512


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction of a method for a face; codes are batches of one, displacements (256,256) metres.

    animated: the source's codes with the driver's expression, and their displacement; None without a driver.
    """

    codes: Codes
    z: NDArray[np.float32]
    animated: tuple[Codes, NDArray[np.float32]] | None


class WorldFigures:
    """Measures faces over one head. `geometry`: a model over it, whose networks are not used."""

    def __init__(self, geometry: DECA) -> None:
        self.model, self.flame = geometry, geometry.flame
        self.mask: NDArray[np.bool_] = geometry.bundle.face_mask > FACE
        self.face = geometry.bundle.face_vertices
        self.scanned = scanned_vertices(geometry)
        self.wrinkles = WrinkleModel(geometry.bundle)

    @torch.inference_mode()
    def measure(
        self, crop: FaceCrop, predicted: Prediction, truth: TrueFace, person: Subject, driver: TrueFace | None
    ) -> dict[str, float | NDArray | None]:
        """Return every figure by column. A figure without a value (the correlation of a flat map) is None."""
        out = self.model.decode(predicted.codes)
        out = dataclasses.replace(out, z=torch.from_numpy(predicted.z)[None, None])
        figures = {
            **self._geometry(crop, predicted.codes, out, truth),
            **self._look(crop, predicted, out, truth),
            **(self._transfer(predicted, truth, person, driver) if driver else {}),
        }
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        head, landmarks = neutral_head(self.flame, truth.codes.shape)
        scan = head[self.scanned]
        return {**finite, **neutral_distances(self.model, predicted.codes.shape, scan, landmarks)}

    def _geometry(self, crop: FaceCrop, codes: Codes, out: Reconstruction, truth: TrueFace) -> dict[str, float]:
        """Landmarks, pose, expression and vertices."""
        true = truth.codes
        points = torch.from_numpy(crop.to_image(to_pixels(out.landmarks2d)[0].numpy()))[None]
        landmarks = torch.from_numpy(truth.landmarks)[None]
        moved = self._at_rest(true.replace(exp=codes.exp, pose=codes.pose))
        neutral, true_neutral = (neutral_head(self.flame, each.shape)[0][self.face] for each in (codes, true))
        return {
            "nme": float(interocular_error(landmarks, points)),
            "nme_box": float(normalized_mean_error(landmarks, points)),
            "lids": float(lid_error(landmarks, points)),
            "pose_deg": float(rotation_error(codes.pose[0, :3], true.pose[0, :3])),
            "jaw_deg": float(rotation_error(codes.pose[0, 3:], true.pose[0, 3:])),
            "expression_mm": float(np.linalg.norm(moved - self._at_rest(true), axis=1).mean()),
            "shape_mm": aligned_distance(neutral, true_neutral),
            "vertex_mm": aligned_distance(MM * out.vertices[0, self.face].numpy(), MM * truth.vertices[self.face]),
        }

    def _look(self, crop: FaceCrop, predicted: Prediction, out: Reconstruction, truth: TrueFace) -> dict[str, float]:
        """Albedo, light, displacement, normals and the image itself."""
        codes = predicted.codes
        rendering = self.model.render(codes, out)
        albedo = (self.model.albedo(codes) - self.model.albedo(truth.codes))[0].abs().numpy()
        hidden = self._hidden(truth)
        skin = (warp(truth.skin_mask, crop.transform)[0] > 0.5) & (rendering.alpha[0, 0].numpy() > 0)
        return {
            "albedo": float(albedo[:, self.mask].mean()),
            "light": float(light_error(codes.light, truth.codes.light)),
            "displacement_corr": correlation(predicted.z, truth.displacement, self.mask),
            "displacement_mm": MM * rms_difference(predicted.z, truth.displacement, self.mask),
            "displacement_strength": strength_error(predicted.z, truth.displacement, self.mask),
            "hidden_mm": MM * rms_difference(predicted.z, truth.displacement, hidden) if hidden.any() else math.nan,
            "normal_deg": normal_error(self.model.detail_normals(out)[0].numpy(), truth.normals, self.mask),
            "psnr_db": psnr(rendering.detail_images[0].numpy(), crop.image, skin) if skin.any() else math.nan,
        }

    def _hidden(self, truth: TrueFace) -> NDArray[np.bool_]:
        """Return the face texels (256,256) that are not visible in the image: turned away, or occluded."""
        vertices = torch.from_numpy(truth.vertices)[None]
        projected = project(vertices, truth.codes.cam)[..., :2]
        attributes = torch.cat([vertex_normals(vertices, self.model.faces), projected], dim=-1)
        normals, grid = self.model.atlas(attributes).split([3, 2], dim=1)
        skin = torch.from_numpy(truth.skin_mask[..., 0]).float()[None, None] / 255
        shown = (sample_uv(skin, grid) > 0.5) & (normals[:, 2:] > FACING)  # as training sees it
        return self.mask & ~shown[0, 0].numpy()

    def _transfer(self, predicted: Prediction, truth: TrueFace, person: Subject, driver: TrueFace) -> dict[str, float]:
        """Return the transfer figures: this head under the driver's expression, against the world's ground truth."""
        assert predicted.animated is not None
        codes, z = predicted.animated
        true = Codes.animate(truth.codes, driver.codes)
        wrinkles = self.wrinkles.displacement(person, true.exp[0].numpy(), true.jaw[0].numpy())
        return {
            "transfer_vertex_mm": aligned_distance(self._at_rest(codes), self._at_rest(true)),
            "transfer_corr": correlation(z, wrinkles, self.mask),
            "transfer_mm": MM * rms_difference(z, wrinkles, self.mask),
            "transfer_static_corr": correlation(predicted.z, wrinkles, self.mask),
            "transfer_static_mm": MM * rms_difference(predicted.z, wrinkles, self.mask),
            "transfer_coarse_mm": MM * rms_difference(np.zeros_like(wrinkles), wrinkles, self.mask),
        }

    def _at_rest(self, codes: Codes) -> NDArray[np.float32]:
        """Vertices of the face with expression and jaw, the head unturned: millimetres."""
        pose = torch.cat([torch.zeros(1, 3), codes.jaw], dim=1)
        return MM * self.flame(codes.shape, codes.exp, pose).vertices[0, self.face].numpy()


def neutral_head(flame: FLAME, shape: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vertices (V,3) and NoW's seven landmarks (7,3) of a head without expression and pose, millimetres."""
    zero = Codes.zeros()
    head = flame(shape, zero.exp, zero.pose)
    return MM * head.vertices[0].numpy(), MM * head.landmarks3d[0, 17:][list(SEVEN)].numpy()


def neutral_distances(model: DECA, shape: Tensor, scan: NDArray, landmarks: NDArray) -> dict[str, NDArray]:
    """NoW's distances of a scan (N,3) with seven landmarks (7,3), millimetres, with and without scale."""
    vertices, own = neutral_head(model.flame, shape)
    surface = Surface(vertices, model.bundle.faces)
    return {
        "scan_mm": scan_distances(scan, landmarks, surface, own),
        "scan_metrical_mm": scan_distances(scan, landmarks, surface, own, scaled=False),
    }


def scanned_vertices(model: DECA) -> NDArray[np.int64]:
    """Return the vertices visible to a frontal scanner: no inside of the mouth, no back of an eye."""
    vertices = torch.from_numpy(model.bundle.v_template)
    middle, extent = vertices.mean(0), (vertices - vertices.mean(0)).norm(dim=1).max()
    seen = []
    for yaw in SCANNER_YAWS:
        angle = math.radians(yaw)
        turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
        view = (vertices - middle) @ turn.T / extent * torch.tensor([1.0, -1.0, -1.0])  # image space: y down, z away
        faces = rasterize(view[None], model.faces, SCANNER_PIXELS, SCANNER_PIXELS).unique()
        seen.append(faces[faces >= 0])
    return np.unique(model.faces[torch.cat(seen)].numpy())
