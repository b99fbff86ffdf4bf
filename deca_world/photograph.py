"""Photographs of procedural subjects with their ground truth."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.appearance import albedo as albedo_map
from deca_core.assets.bundle import NUM_JOINTS, UV_SIZE, AssetBundle, BundleError
from deca_core.camera import project, to_pixels
from deca_core.codes import NUM_DETAIL, Codes
from deca_core.flame import FLAME, Head, blend_shapes, joint_transforms, rotation_matrix, skin
from deca_core.uv import UVAtlas
from deca_world.background import paint
from deca_world.clothing import build_clothing
from deca_world.face_paint import FacePaint
from deca_world.hair import build_hair
from deca_world.lens import develop, encode_jpeg
from deca_world.occluders import build_occluders
from deca_world.props import Colour, Prop, landmarks
from deca_world.renderer import Assembly, Renderer, assemble, normals_of, occlusion
from deca_world.scene import Limits, Shot
from deca_world.scene import shot as sample_shot
from deca_world.subject import Subject
from deca_world.subject import subject as sample_subject
from deca_world.wrinkles import WrinkleModel

Float = NDArray[np.float32]

KEPT_SUBJECTS = 8  # subjects whose hair, albedo and occlusion stay in memory
FACE_SKIN = 0.5  # share of a pixel that must be visible face skin for the mask


@dataclass(frozen=True, eq=False)
class Photograph:
    """One image of n x n pixels and the truth about it.

    codes: a batch of one in the method's conventions, cam for the whole square image; `detail` is zero: the truth of
    the detail is `displacement` (256,256) metres, without the bundle's fixed displacement. vertices (V,3) metres, world
    space, eyes turned; landmarks (68,2) pixels, dynamic contour; skin_mask (n,n) uint8, 255 on visible skin of the
    face; normals (3,256,256) of the displaced surface on the UV map, world space.
    """

    image: NDArray[np.uint8]
    landmarks: Float
    skin_mask: NDArray[np.uint8]
    codes: Codes
    vertices: Float
    displacement: Float
    normals: Float
    jpeg_quality: int

    def jpeg(self) -> bytes:
        """The image as its camera would store it."""
        return encode_jpeg(self.image, self.jpeg_quality)


@dataclass(frozen=True, eq=False)
class _Sitter:
    """What is constant over all images of a subject."""

    shaped: Float  # (V, 3) at rest, no expression
    albedo: Float  # (3, T, T)
    props: list[Prop]
    assembly: Assembly
    soft: Float  # (N,) ambient occlusion
    tone: Colour  # of bare skin
    hair: Colour


class World:
    """Photographs over one bundle. Not for several threads at once; processes agree with each other byte by byte.

    >>> world = World(bundle)  # doctest: +SKIP
    >>> someone = world.subject(seed=0, index=7)  # doctest: +SKIP
    >>> image = world.photograph(someone, world.shot(someone, image=0), size=224)  # doctest: +SKIP
    """

    def __init__(self, bundle: AssetBundle) -> None:
        if bundle.albedo_mean is None or bundle.albedo_basis is None:
            raise BundleError(
                f"bundle {bundle.name!r} has no albedo model, photographs need one. "
                "Use procedural_head(), or import FLAME again with its albedo file"
            )
        from deca_world.surface import DetailSurface

        self.bundle = bundle
        self._albedo = torch.from_numpy(bundle.albedo_mean), torch.from_numpy(bundle.albedo_basis)
        self.wrinkles = WrinkleModel(bundle)
        self._flame, self._renderer = FLAME(bundle), Renderer(bundle)
        atlas = UVAtlas(bundle)
        gather = (atlas.triangles.numpy(), atlas.bary.numpy(), atlas.texels.numpy())
        self._surface = DetailSurface(*gather, bundle.face_eye_mask, bundle.fixed_displacement)
        self._faces = bundle.faces.astype(np.int32)
        positions = atlas(torch.from_numpy(bundle.v_template)[None])[0].numpy()
        self._cheeks = _cheeks(bundle, positions)
        self._paint = FacePaint(bundle, positions)
        self._open = np.unique(bundle.faces[bundle.static_landmark_faces])
        self._sitters: OrderedDict[tuple[int, int], _Sitter] = OrderedDict()

    def subject(self, seed: int, index: int) -> Subject:
        return sample_subject(seed, index)

    def shot(self, subject: Subject, image: int, limits: Limits | None = None) -> Shot:
        return sample_shot(subject, image, self.bundle.expression_names, limits)

    @torch.inference_mode()
    def photograph(self, subject: Subject, shot: Shot, size: int = 224) -> Photograph:
        """Take the image, size x size pixels."""
        sitter = self._sitter(subject)
        codes, head = self._pose(subject, shot)
        vertices = head.vertices[0].numpy()
        displacement = self.wrinkles.displacement(subject, shot.exp, shot.jaw)
        surface = self._surface.normals(vertices, normals_of(vertices, self._faces), displacement)
        assembly, soft = self._with_occluders(sitter, shot)
        world = np.concatenate([vertices, self._pose_props(sitter, assembly, shot)])
        frame = self._renderer.render(
            assembly,
            world,
            codes.cam[0].numpy(),
            shot.light,
            soft,
            sitter.albedo,
            surface,
            subject.oiliness,
            paint(shot.background, size),
        )
        landmarks = to_pixels(project(head.landmarks2d, codes.cam)[0, :, :2], size).numpy()
        return Photograph(
            image=develop(frame.colour, shot.lens),
            landmarks=landmarks,
            skin_mask=np.where(frame.skin > FACE_SKIN, np.uint8(255), np.uint8(0)),
            codes=codes,
            vertices=vertices,
            displacement=displacement,
            normals=np.ascontiguousarray(surface.T).reshape(3, UV_SIZE, UV_SIZE),
            jpeg_quality=shot.lens.quality,
        )

    def _pose(self, subject: Subject, shot: Shot) -> tuple[Codes, Head]:
        """Codes of the image and the posed head; the camera's shift puts the face where the shot wants it."""
        shape, exp = torch.from_numpy(subject.shape)[None], torch.from_numpy(shot.exp)[None]
        pose = torch.from_numpy(np.concatenate([shot.head, shot.jaw]))[None]
        head = self._flame(shape, exp, pose, eyes=torch.from_numpy(shot.eyes)[None])
        middle = head.landmarks3d[0, 17:, :2].mean(0)
        x, y = shot.offset
        cam = torch.tensor([[shot.scale, x / shot.scale - float(middle[0]), -y / shot.scale - float(middle[1])]])
        codes = Codes(
            shape=shape,
            tex=torch.from_numpy(subject.tex)[None],
            exp=exp,
            pose=pose,
            cam=cam.float(),
            light=torch.from_numpy(shot.light.code)[None],
            detail=torch.zeros(1, NUM_DETAIL),
        )
        return codes, head

    def _sitter(self, subject: Subject) -> _Sitter:
        key = (subject.seed, subject.index)
        if key in self._sitters:
            self._sitters.move_to_end(key)
            return self._sitters[key]
        bundle = self.bundle
        template, basis = torch.from_numpy(bundle.v_template), torch.from_numpy(bundle.shape_basis)
        shaped = blend_shapes(template, basis, torch.from_numpy(subject.shape)[None])[0].numpy()
        albedo = albedo_map(torch.from_numpy(subject.tex)[None], *self._albedo)[0].numpy()
        albedo = np.clip(albedo * (1 - self.wrinkles.stain(subject)), 0.01, 1.0).astype(np.float32)
        tone = self._skin_tone(albedo)
        albedo = self._paint.apply(albedo, subject.looks)
        albedo = albedo * np.exp(-subject.looks.skin.creases * self.wrinkles.shade(subject))
        props = [
            *build_hair(bundle, shaped, subject.hair, tone),
            *build_clothing(bundle, shaped, subject.clothing, tone),
        ]
        assembly = assemble(bundle, props)
        soft = occlusion(assembly, np.concatenate([shaped, assembly.prop_vertices]))
        # The light code is the light that reaches a face, whatever its hair: open skin of the face counts as 1.
        soft = np.minimum(soft / np.quantile(soft[self._open], 0.8), 1.0)
        self._sitters[key] = _Sitter(shaped, albedo, props, assembly, soft, tone, subject.hair.colour)
        while len(self._sitters) > KEPT_SUBJECTS:
            self._sitters.popitem(last=False)
        return self._sitters[key]

    def _skin_tone(self, albedo: Float) -> Colour:
        """The colour of bare skin: the median of the cheeks, on both sides below the eyes."""
        red, green, blue = (float(value) for value in np.median(albedo[:, self._cheeks], axis=1))
        return red, green, blue

    def _with_occluders(self, sitter: _Sitter, shot: Shot) -> tuple[Assembly, Float]:
        """The sitter's assembly, with the shot's occluders behind the lasting props; those see all surroundings."""
        extra = build_occluders(self.bundle, sitter.shaped, shot.occluders, sitter.tone, sitter.hair)
        if not extra:
            return sitter.assembly, sitter.soft
        assembly = assemble(self.bundle, [*sitter.props, *extra])
        count = self.bundle.num_vertices + len(assembly.prop_vertices) - len(sitter.soft)
        return assembly, np.concatenate([sitter.soft, np.ones(count, np.float32)])

    def _pose_props(self, sitter: _Sitter, assembly: Assembly, shot: Shot) -> Float:
        """Posed vertices of the props (N-V,3): what rides on the head by its joints, clothes by the shoulders.

        Heads turn further than shoulders. FLAME's code has one rotation for both, about the root joint; the shoulders
        are not part of it, so they may turn less about the same point.
        """
        joints = torch.from_numpy(self.bundle.joint_regressor @ sitter.shaped)[None]
        rest = torch.from_numpy(assembly.prop_vertices)[None]
        weights = torch.from_numpy(assembly.prop_weights)
        posed = []
        for root in (shot.head, shot.body):
            rotations = np.zeros((NUM_JOINTS, 3), np.float32)
            rotations[0] = root
            rotations[2] = shot.jaw
            transforms = joint_transforms(rotation_matrix(torch.from_numpy(rotations))[None], joints)
            posed.append(skin(rest, weights, transforms)[0].numpy())
        return np.where(assembly.prop_rides[:, None], posed[0], posed[1])


def _cheeks(bundle: AssetBundle, positions: Float) -> NDArray[np.bool_]:
    """Texels (T,T) of the cheeks: beside the nose's wings, up to 25 mm outside them."""
    points = landmarks(bundle, bundle.v_template)
    x, y, _ = positions
    wing, low, high = abs(points[35, 0]), points[33, 1], points[46, 1]
    aside = (np.abs(x) > wing + 0.008) & (np.abs(x) < wing + 0.025)
    return aside & (y > low) & (y < 0.5 * (low + high)) & (bundle.face_mask > 0.5)
