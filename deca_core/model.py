"""DECA: encode an image to codes, decode codes to a detailed head, render it, animate it (paper fig. 2 and 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deca_core.appearance import SH_CONSTANTS, albedo, shading
from deca_core.assets.bundle import AssetBundle
from deca_core.camera import IMAGE_SIZE, project
from deca_core.codes import NUM_COARSE, NUM_DETAIL, Codes, CodesError
from deca_core.crop import INFERENCE_SCALE, LANDMARK_MARGIN
from deca_core.detail import DetailDecoder, detail_normals
from deca_core.encoder import Encoder
from deca_core.flame import FLAME
from deca_core.images import as_batch
from deca_core.raster import Backend, rasterize
from deca_core.render import Rendering, fragments, render_surface, sample_uv, studio_shading, vertex_normals
from deca_core.uv import UVAtlas, uv_to_grid

PLAIN_ALBEDO = 0.7  # grey where a bundle carries no albedo model


@dataclass(frozen=True)
class Reconstruction:
    """Decoded heads.

    vertices (B,V,3) metres, world space; projected (B,V,3) image space; landmarks2d (B,68,2) in [-1, 1];
    landmarks3d (B,68,3) metres, world space; z (B,1,256,256) metres, the decoder's displacement;
    displacement (B,1,256,256) metres, z plus the bundle's fixed displacement: what is exported.
    """

    vertices: Tensor
    projected: Tensor
    landmarks2d: Tensor
    landmarks3d: Tensor
    z: Tensor
    displacement: Tensor


class DECA(nn.Module):
    """The model over a head. It starts in eval mode; `state_dict` contains E_c, E_d and F_d, never the bundle.

    Under autocast only the networks' convolutions run in half precision: 8 bits cannot hold codes or vertices.

    >>> model = DECA(bundle)  # doctest: +SKIP
    >>> codes = model.encode(images)  # doctest: +SKIP
    >>> smiling = model.decode(codes.replace(exp=other.exp))  # doctest: +SKIP
    """

    faces: Tensor
    uv_corners: Tensor
    mask: Tensor
    fixed_displacement: Tensor
    albedo_mean: Tensor
    albedo_basis: Tensor | None

    def __init__(self, bundle: AssetBundle, backbone: str = "resnet50") -> None:
        super().__init__()
        self.bundle, self.backbone = bundle, backbone
        self.info: dict[str, str] = {"trained": "no"}
        self.E_flame = Encoder(NUM_COARSE, backbone)
        self.E_detail = Encoder(NUM_DETAIL, backbone)
        self.D_detail = DetailDecoder()
        self.flame = FLAME(bundle)
        self.atlas = UVAtlas(bundle)
        uv_corners = uv_to_grid(bundle.uv)[bundle.uv_faces]
        mean = bundle.albedo_mean
        for name, value in {
            "faces": torch.from_numpy(bundle.faces),
            "uv_corners": torch.from_numpy(uv_corners),
            "mask": torch.from_numpy(bundle.face_eye_mask),
            "fixed_displacement": torch.from_numpy(bundle.fixed_displacement),
            "albedo_mean": torch.full((3, 256, 256), PLAIN_ALBEDO) if mean is None else torch.from_numpy(mean),
            "albedo_basis": None if bundle.albedo_basis is None else torch.from_numpy(bundle.albedo_basis),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.E_flame.start_at(self._mean_face())
        self.eval()

    def encode(self, images: Any, *, validate: bool = True) -> Codes:
        """Images (B,3,224,224), RGB in [0, 1], to codes: E_c and E_d.

        uint8 is divided by 255; arrays, lists of images, (H,W,3) and other float types are taken as well: see
        `deca_core.images.as_batch`. Raises ImageError for what is not finite, out of range, or of another size.
        validate=False skips all checks: for loops that built a float tensor of the model's own dtype themselves.
        """
        if validate:
            images = as_batch(images, like=next(self.E_flame.parameters()))
        return Codes.from_vectors(self.E_flame(images), self.E_detail(images))

    def decode(self, codes: Codes, *, validate: bool = True) -> Reconstruction:
        """Codes to posed vertices (eq. 1), landmarks and displacement (eq. 9).

        Raises CodesError for codes that are not finite; validate=False skips this check.
        """
        if validate:
            codes.check()
        z = self.detail(codes)
        with _float32(codes.cam):
            head = self.flame(codes.shape, codes.exp, codes.pose)
            return Reconstruction(
                vertices=head.vertices,
                projected=project(head.vertices, codes.cam),
                landmarks2d=project(head.landmarks2d, codes.cam)[..., :2],
                landmarks3d=head.landmarks3d,
                z=z,
                displacement=z + self.fixed_displacement,
            )

    def detail(self, codes: Codes) -> Tensor:
        """The decoder's displacement z = F_d(delta, psi, theta_jaw), eq. 9: (B,1,256,256) metres."""
        return self.D_detail(torch.cat([codes.jaw, codes.exp, codes.detail], dim=1)).to(codes.detail.dtype)

    def displacement(self, codes: Codes) -> Tensor:
        """The exported displacement: z plus the fixed displacement, (B,1,256,256) metres, without posing the head."""
        return self.detail(codes) + self.fixed_displacement

    def albedo(self, codes: Codes) -> Tensor:
        """Albedo maps A(alpha), (B,3,256,256) RGB; plain grey where the bundle has no albedo model."""
        if self.albedo_basis is None:
            return self.albedo_mean.expand(len(codes), -1, -1, -1)
        return albedo(codes.tex, self.albedo_mean, self.albedo_basis)

    def detail_normals(self, out: Reconstruction) -> Tensor:
        """Normals of the detailed surface M' on the UV map, (B,3,256,256), world space."""
        return self._detail_normals(out, vertex_normals(out.vertices, self.faces))

    def _detail_normals(self, out: Reconstruction, normals: Tensor) -> Tensor:
        surface = self.atlas(torch.cat([out.vertices, normals], dim=-1).detach())
        return detail_normals(surface[:, :3], surface[:, 3:], out.z, self.mask, self.fixed_displacement)

    def render(self, codes: Codes, out: Reconstruction, size: int = IMAGE_SIZE, backend: Backend = "auto") -> Rendering:
        """Images of the heads, size x size, seen as in the crop that the codes came from. Raises CodesError."""
        if len(codes) != len(out.vertices):
            raise CodesError(
                f"render: {len(codes)} codes and {len(out.vertices)} heads. Pass the result of decode of these codes"
            )
        with _float32(codes.cam):
            visible = fragments(rasterize(out.projected, self.faces, size, size, backend), out.projected, self.faces)
            normals = vertex_normals(out.vertices, self.faces)
            colour, light, normal_image, alpha, grid = render_surface(
                visible, self.faces, self.uv_corners, normals, self.albedo(codes), codes.light
            )
            detail = sample_uv(self._detail_normals(out, normals), grid) * alpha
            return Rendering(
                images=colour * light,
                albedo=colour,
                shading=light,
                normals=normal_image,
                alpha=alpha,
                detail_normals=detail,
                detail_images=colour * shading(detail, codes.light),
                shape=studio_shading(normal_image) * alpha,
                shaded_detail=studio_shading(detail) * alpha,
            )

    @staticmethod
    def animate(source: Codes, driver: Codes) -> Codes:
        """`Codes.animate`: expression and jaw of the driver on the source's head."""
        return Codes.animate(source, driver)

    def _mean_face(self) -> Tensor:
        """Coarse codes (236,) of the mean head, placed as in an inference crop, evenly lit: the start of training."""
        home = self.flame.v_template.device
        prior = Codes.zeros(device=home)
        points = self.flame(prior.shape, prior.exp, prior.pose).landmarks2d[0, :, :2]
        low, high = points.amin(0), points.amax(0)
        scale = 2 / ((high - low).mean() * LANDMARK_MARGIN * INFERENCE_SCALE)
        cam = torch.cat([scale[None], -(low + high) / 2])[None]
        light = prior.light.index_fill(1, torch.tensor([0], device=home), 1 / SH_CONSTANTS[0])
        prior = prior.replace(cam=cam, light=light)
        return torch.cat([getattr(prior, name).flatten() for name in ("shape", "tex", "exp", "pose", "cam", "light")])


def _float32(like: Tensor) -> torch.autocast:
    """Context without autocast, in which geometry and light keep float32."""
    return torch.autocast(like.device.type, enabled=False)
