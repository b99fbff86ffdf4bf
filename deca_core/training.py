"""One training step of each stage: a batch of faces in, the total loss and its terms out (sections 4.1 and 4.2).

The optimiser, precision and distribution are the caller's. The steps are modules in which only what the stage trains
requires a gradient; networks run under the autocast that is active, geometry and losses keep to float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deca_core import losses
from deca_core.appearance import shading
from deca_core.camera import project
from deca_core.codes import NUM_DETAIL, Codes
from deca_core.detail import detail_normals
from deca_core.losses import CoarseWeights, DetailWeights
from deca_core.losses.precision import full_precision
from deca_core.model import DECA
from deca_core.perceptual import VGG19
from deca_core.raster import Backend, rasterize
from deca_core.recognition import Recognition
from deca_core.render import fragments, render_surface, sample_uv, vertex_normals

FACING = 0.05  # a texel counts as seen where its unit normal points at the camera by more than this


@dataclass(frozen=True)
class FaceBatch:
    """Images of faces and their labels, in the frame of the 224 px crop.

    images (B,3,224,224) RGB in [0, 1]; landmarks (B,68,3): x, y in [-1, 1] and a weight; masks (B,1,224,224) in [0, 1],
    the visible skin of the face; subjects (B,) int64. A subject's K = images_per_subject images are adjacent.
    fits (B,156): shape, expression and pose that fit the landmarks, NaN where there is none; None without any.
    """

    images: Tensor
    landmarks: Tensor
    masks: Tensor
    subjects: Tensor
    images_per_subject: int
    fits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FaceBatch:
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class StepOutput:
    """loss: what is minimised; terms: its summands by name, weighted and detached, on the batch's device."""

    loss: Tensor
    terms: dict[str, Tensor]


class CoarseStep(nn.Module):
    """The losses on E_c (section 4.1), for the pretrain and the coarse stage: they differ in their weights.

    Making a step freezes the rest of the model, so a model has one step at a time.

    >>> step = CoarseStep(model, recipe("paper").coarse, load_vggface2(path)).train()  # doctest: +SKIP
    >>> step(batch, torch.Generator().manual_seed(0)).loss.backward()  # doctest: +SKIP
    """

    shape_gram: Tensor
    exp_gram: Tensor

    def __init__(
        self,
        model: DECA,
        weights: CoarseWeights,
        recognition: Recognition | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if weights.identity and recognition is None:
            raise ValueError("the identity loss has a weight but no network; give a recognition network or weight 0")
        self.model, self.weights, self.recognition, self.backend = model, weights, recognition, backend
        face = torch.from_numpy(model.bundle.face_vertices)
        for name in ("shape", "exp"):
            basis = getattr(model.flame, f"{name}_basis")
            self.register_buffer(
                f"{name}_gram", losses.gram(basis[face], model.flame.v_template[face]), persistent=False
            )
        model.requires_grad_(False).E_flame.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> CoarseStep:
        """E_c in the given mode, everything else in eval mode."""
        super().train(False)
        self.training = mode
        self.model.E_flame.train(mode)
        return self

    def forward(self, batch: FaceBatch, generator: torch.Generator | None = None) -> StepOutput:
        """The losses of a batch; given a generator, also of its copy with exchanged shape codes (eq. 8)."""
        weights = self.weights
        vectors = self.model.E_flame(batch.images)
        with _without_autocast(vectors):
            codes = _coarse_codes(vectors)
            order = _swap_order(batch, generator if weights.shape_consistency else None)
            if order is not None:
                codes = Codes.cat([codes, codes.replace(shape=codes.shape[order])])
            head = self.model.flame(codes.shape, codes.exp, codes.pose)
            points = project(head.landmarks2d, codes.cam)[..., :2]
            terms = _coarse_terms(weights, codes, _tiled(batch.landmarks, codes), points)
            if weights.fit:
                if batch.fits is None:
                    raise ValueError("the fit loss has a weight but the batch no fits; give them or weight 0")
                distance = losses.fit_distance(codes, _tiled(batch.fits, codes), self.shape_gram, self.exp_gram)
                terms["fit"] = weights.fit * distance
            if not (weights.photometric or weights.identity):
                return _total(terms)
            images, masks = _tiled(batch.images, codes), _tiled(_shown(batch, weights), codes)
            albedo = self.model.albedo(codes[: len(batch)])  # the same in both halves
            rendering, face, pasted = self._render(codes, head.vertices, _tiled(albedo, codes), images)
            if weights.photometric:
                # Skin that the head does not cover cannot be explained: its error would be large and have no slope.
                terms["photometric"] = weights.photometric * losses.photometric(images, rendering, masks * face)
        if self.recognition is not None and weights.identity:
            with torch.no_grad():
                target = self.recognition.features(batch.images)
            features = self.recognition.features(pasted)
            terms["identity"] = weights.identity * losses.identity(_tiled(target, codes), features)
        return _total(terms)

    def _render(self, codes: Codes, vertices: Tensor, albedo: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rendering (eq. 2) and where the face is, (B,3,H,W) and (B,1,H,W); the rendering pasted on the image.

        On the pasted image only the geometry has a gradient: identity is a matter of shape, and the network would
        otherwise paint it (albedo) or light it.
        """
        model, size = self.model, images.shape[-1]
        projected = project(vertices, codes.cam)
        visible = fragments(rasterize(projected, model.faces, size, size, self.backend), projected, model.faces)
        normals = vertex_normals(vertices, model.faces)
        colour, light, normal_image, alpha, grid = render_surface(
            visible, model.faces, model.uv_corners, normals, albedo, codes.light
        )
        rendering = colour * light if self.weights.lit else colour
        face = sample_uv(model.mask.expand(len(codes), 1, -1, -1), grid.detach()) * alpha.detach()
        pasted = images
        if self.weights.identity:
            skin = sample_uv(albedo.detach(), grid) * shading(normal_image, codes.light.detach())
            pasted = face * skin + (1 - face) * images
        return rendering, face, pasted


def predicted_landmarks(model: DECA, images: Tensor) -> Tensor:
    """The landmarks (B,68,2) in [-1, 1] that E_c finds in images (B,3,224,224)."""
    vectors = model.E_flame(images)
    with _without_autocast(vectors):
        codes = _coarse_codes(vectors)
        return project(model.flame(codes.shape, codes.exp, codes.pose).landmarks2d, codes.cam)[..., :2]


class DetailStep(nn.Module):
    """The losses on E_d and F_d (section 4.2); E_c is frozen and in eval mode.

    All of it happens on the UV map: exchanged detail codes change neither geometry nor visibility, so both halves share
    them, and nothing is rasterised.
    """

    def __init__(self, model: DECA, weights: DetailWeights, perceptual: VGG19 | None = None) -> None:
        super().__init__()
        missing = set(weights.mrf_layers) - set(perceptual.layers if perceptual else ())
        if weights.mrf and missing:
            raise ValueError(f"ID-MRF needs VGG19's {', '.join(sorted(missing))}; give such a network or weight 0")
        self.model, self.weights, self.perceptual = model, weights, perceptual
        model.requires_grad_(False)
        for trained in (model.E_detail, model.D_detail):
            trained.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> DetailStep:
        """E_d and F_d in the given mode, everything else in eval mode."""
        super().train(False)
        self.training = mode
        for trained in (self.model.E_detail, self.model.D_detail):
            trained.train(mode)
        return self

    def forward(self, batch: FaceBatch, generator: torch.Generator | None = None) -> StepOutput:
        """The losses of a batch; given a generator, also of its copy with exchanged detail codes (eq. 15)."""
        model, weights = self.model, self.weights
        with torch.no_grad():
            vectors = model.E_flame(batch.images)
            with _without_autocast(vectors):
                codes = _coarse_codes(vectors)
                surface = self._surface(batch, codes)
        codes = codes.replace(detail=model.E_detail(batch.images))
        order = _swap_order(batch, generator if weights.detail_consistency else None)
        if order is not None:
            codes = Codes.cat([codes, codes.replace(detail=codes.detail[order])])
        z = model.detail(codes)
        with _without_autocast(z):
            z = full_precision(z)
            positions, normals = _tiled(surface.positions, codes), _tiled(surface.normals, codes)
            light = shading(detail_normals(positions, normals, z, model.mask, model.fixed_displacement), codes.light)
            visibility = _tiled(surface.visibility, codes)
            terms = _detail_terms(weights, z, light, visibility)
            texture = losses.face_patch(_tiled(surface.albedo, codes) * light * visibility)
            target = losses.face_patch(surface.image * surface.visibility)
            if weights.photometric:
                error = losses.photometric(_tiled(target, codes), texture, torch.ones_like(texture[:, :1]))
                terms["photometric"] = weights.photometric * error
        if self.perceptual is not None and weights.mrf:
            terms["mrf"] = weights.mrf * self._mrf(self.perceptual, texture, target)
        return _total(terms)

    def _surface(self, batch: FaceBatch, codes: Codes) -> CoarseSurface:
        """The coarse reconstruction of E_c and the image, warped to the UV map."""
        model = self.model
        vertices = model.flame(codes.shape, codes.exp, codes.pose).vertices
        projected = project(vertices, codes.cam)[..., :2]
        attributes = torch.cat([vertices, vertex_normals(vertices, model.faces), projected], dim=-1)
        positions, normals, grid = model.atlas(attributes).split([3, 3, 2], dim=1)
        shown = _shown(batch, self.weights)
        image, mask = sample_uv(torch.cat([batch.images, shown], dim=1), grid).split([3, 1], dim=1)
        facing = normals[:, 2:] > FACING  # in image space, where z points away: z < -0.05
        return CoarseSurface(positions, normals, model.albedo(codes), image, mask * facing * model.mask)

    def _mrf(self, perceptual: VGG19, texture: Tensor, target: Tensor) -> Tensor:
        size = (self.weights.mrf_size,) * 2
        texture, target = (functional.interpolate(patch, size, mode="bilinear") for patch in (texture, target))
        with torch.no_grad():
            goal = perceptual(target)  # both halves have the same one
        features = perceptual(texture)
        goal = {name: value.repeat(len(texture) // len(value), 1, 1, 1) for name, value in goal.items()}
        return losses.id_mrf(features, goal, self.weights.mrf_layers)


@dataclass(frozen=True)
class CoarseSurface:
    """UV maps of a batch, without gradient: positions and normals of the coarse surface and its albedo (B,3,T,T);
    image (B,3,T,T): the photograph warped to UV; visibility (B,1,T,T): where that shows facing, visible skin.
    """

    positions: Tensor
    normals: Tensor
    albedo: Tensor
    image: Tensor
    visibility: Tensor


def _coarse_terms(weights: CoarseWeights, codes: Codes, target: Tensor, points: Tensor) -> dict[str, Tensor]:
    """Terms that need no image: landmarks (B,68,3) against points (B,68,2), and regularisers."""
    landmark_losses = {
        "landmark": losses.landmark,
        "eye_closure": losses.eye_closure,
        "lip_distance": losses.lip_distance,
    }
    terms = {
        name: getattr(weights, name) * loss(target, points)
        for name, loss in landmark_losses.items()
        if getattr(weights, name)
    }
    for name in ("shape", "exp", "tex"):
        if getattr(weights, name):
            terms[name] = getattr(weights, name) * losses.code_energy(getattr(codes, name))
    if weights.light:
        terms["light"] = weights.light * losses.light_colour(codes.light)
    return terms


def _detail_terms(weights: DetailWeights, z: Tensor, light: Tensor, visibility: Tensor) -> dict[str, Tensor]:
    """Terms on the UV map that need no image."""
    terms = {}
    if weights.symmetry:
        terms["symmetry"] = weights.symmetry * losses.soft_symmetry(z, visibility)
    if weights.displacement:
        terms["displacement"] = weights.displacement * losses.displacement_size(z)
    if weights.shading_smoothness:
        terms["shading_smoothness"] = weights.shading_smoothness * losses.shading_smoothness(light)
    return terms


def _coarse_codes(vectors: Tensor) -> Codes:
    """The coarse encoder's answer (B,236) as codes, with detail codes of 0."""
    vectors = full_precision(vectors)
    return Codes.from_vectors(vectors, vectors.new_zeros(len(vectors), NUM_DETAIL))


def _shown(batch: FaceBatch, weights: CoarseWeights | DetailWeights) -> Tensor:
    """Pixels (B,1,224,224) that count as skin of the face: those of the mask, or all of the image without it."""
    return batch.masks if weights.skin_mask else torch.ones_like(batch.masks)


def _swap_order(batch: FaceBatch, generator: torch.Generator | None) -> Tensor | None:
    """Index of the code that every image receives in the swapped half of the batch; None without that half."""
    if generator is None or batch.images_per_subject == 1:
        return None
    return losses.swap_order(len(batch), batch.images_per_subject, generator).to(batch.images.device)


def _tiled(value: Tensor, codes: Codes) -> Tensor:
    """The batch's tensor, repeated for the swapped half where the codes have one."""
    return value if len(value) == len(codes) else torch.cat([value, value])


def _without_autocast(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)


def _total(terms: dict[str, Tensor]) -> StepOutput:
    return StepOutput(torch.stack(list(terms.values())).sum(), {name: value.detach() for name, value in terms.items()})
