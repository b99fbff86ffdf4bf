"""FLAME head model: M(beta, theta, psi) = W(T_P(beta, theta, psi), J(beta), theta, W), paper eq. 1.

Source: Li et al. 2017 (FLAME), Loper et al. 2015 (SMPL); joints 0 root, 1 neck, 2 jaw, 3 left eye, 4 right eye.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deca_core.assets.bundle import PARENTS, AssetBundle

CONTOUR_LIMIT_DEGREES = 39  # the dynamic contour is tabulated for head yaws of -39..39 degrees


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula R = I + sin(a)/a K + (1 - cos(a))/a^2 K^2, smooth at a = 0.

    axis_angle (...,3) radians -> (...,3,3).
    """
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    angle = (axis_angle.square().sum(-1) + 1e-16).sqrt()[..., None, None]
    sine = torch.sinc(angle / torch.pi)  # sin(a)/a
    cosine = torch.sinc(angle / (2 * torch.pi)).square() / 2  # (1 - cos(a))/a^2
    return torch.eye(3, dtype=skew.dtype, device=skew.device) + sine * skew + cosine * skew @ skew


def axis_angle(rotation: Tensor) -> Tensor:
    """Inverse of `rotation_matrix`, angles 0 to pi: (...,3,3) -> (...,3) radians.

    The unit quaternion is the eigenvector of the largest eigenvalue of a matrix that is linear in the rotation, at
    every angle. Source: Bar-Itzhack 2000.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotation.unbind(-2))
    rows = [
        [xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, yy - xx - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    _, vectors = torch.linalg.eigh(torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2))
    axis, cosine = vectors[..., :3, -1], vectors[..., 3:, -1]
    axis = torch.where(cosine < 0, -axis, axis)
    sine = axis.norm(dim=-1, keepdim=True)
    half = torch.atan2(sine, cosine.abs())
    return axis * 2 / torch.sinc(half / torch.pi)  # the axis has the length sin(half)


def blend_shapes(template: Tensor, basis: Tensor, coefficients: Tensor) -> Tensor:
    """Template plus linear offsets: (V,3), (V,3,K), (B,K) -> (B,V,3)."""
    return template + torch.einsum("vck,bk->bvc", basis, coefficients)


def pose_features(rotations: Tensor) -> Tensor:
    """(R_j - I) of the joints 1..4, flattened: (B,5,3,3) -> (B,36)."""
    identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return (rotations[:, 1:] - identity).flatten(1)


def joint_transforms(rotations: Tensor, joints: Tensor) -> Tensor:
    """World transform of every joint, taking rest-pose points to posed points.

    rotations (B,5,3,3) relative to the parent; joints (B,5,3) at rest, metres -> (B,5,3,4).
    """
    world: list[tuple[Tensor, Tensor]] = []
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            world.append((rotations[:, joint], joints[:, joint]))
            continue
        parent_rotation, parent_position = world[parent]
        offset = joints[:, joint] - joints[:, parent]
        position = parent_position + torch.einsum("bij,bj->bi", parent_rotation, offset)
        world.append((parent_rotation @ rotations[:, joint], position))
    rotation = torch.stack([entry[0] for entry in world], dim=1)
    position = torch.stack([entry[1] for entry in world], dim=1)
    translation = position - torch.einsum("bjik,bjk->bji", rotation, joints)  # the rest position is taken out
    return torch.cat([rotation, translation[..., None]], dim=-1)


def skin(vertices: Tensor, weights: Tensor, transforms: Tensor) -> Tensor:
    """Linear blend skinning: (B,V,3), (V,5), (B,5,3,4) -> (B,V,3)."""
    blended = torch.einsum("vj,bjik->bvik", weights, transforms)
    return torch.einsum("bvik,bvk->bvi", blended[..., :3], vertices) + blended[..., 3]


def points_on_faces(vertices: Tensor, triangles: Tensor, barycentric: Tensor) -> Tensor:
    """Barycentric points: vertices (B,V,3), triangles (B,L,3) vertex indices, barycentric (B,L,3) -> (B,L,3)."""
    batch = torch.arange(len(vertices), device=vertices.device)[:, None, None]
    return torch.einsum("blk,blkc->blc", barycentric, vertices[batch, triangles])


def contour_bin(rotations: Tensor) -> Tensor:
    """Row of the dynamic contour table for a head rotation: (B,5,3,3) -> (B,) in 0..78.

    The yaw is that of the rotation composed along the chain neck, root: y = atan2(-R20, sqrt(R00^2 + R10^2)), rounded
    to degrees. 0..39 select themselves, -1..-39 select 40..78; turns beyond are held at the ends.
    """
    head = rotations[:, 0] @ rotations[:, 1]
    yaw = torch.atan2(-head[:, 2, 0], torch.hypot(head[:, 0, 0], head[:, 1, 0]))
    degrees = torch.rad2deg(yaw).round().long().clamp(-CONTOUR_LIMIT_DEGREES, CONTOUR_LIMIT_DEGREES)
    return torch.where(degrees >= 0, degrees, CONTOUR_LIMIT_DEGREES - degrees)


@dataclass(frozen=True)
class Head:
    """Posed heads: vertices (B,V,3), landmarks2d and landmarks3d (B,68,3), all in metres, world space.

    `landmarks2d` follow the visible contour (the points that a 2D detector marks); `landmarks3d` are fixed on the face.
    """

    vertices: Tensor
    landmarks2d: Tensor
    landmarks3d: Tensor


class FLAME(nn.Module):
    """The arrays of a bundle and the forward model. It has no learned parameters and stays out of checkpoints."""

    v_template: Tensor
    shape_basis: Tensor
    exp_basis: Tensor
    pose_basis: Tensor
    joint_regressor: Tensor
    skin_weights: Tensor
    static_triangles: Tensor
    static_bary: Tensor
    dynamic_triangles: Tensor
    dynamic_bary: Tensor
    full_triangles: Tensor
    full_bary: Tensor

    def __init__(self, bundle: AssetBundle) -> None:
        super().__init__()
        for name in ("v_template", "shape_basis", "exp_basis", "pose_basis", "joint_regressor", "skin_weights"):
            self._hold(name, torch.from_numpy(getattr(bundle, name)))
        faces = torch.from_numpy(bundle.faces)
        for kind in ("static", "dynamic", "full"):
            self._hold(f"{kind}_triangles", faces[torch.from_numpy(getattr(bundle, f"{kind}_landmark_faces"))])
            self._hold(f"{kind}_bary", torch.from_numpy(getattr(bundle, f"{kind}_landmark_bary")))

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(
        self, shape: Tensor, exp: Tensor, pose: Tensor, neck: Tensor | None = None, eyes: Tensor | None = None
    ) -> Head:
        """Codes to posed heads, eq. 1.

        shape (B,100), exp (B,50), pose (B,6) = head and jaw rotation, neck (B,3) and eyes (B,6) axis-angle radians,
        zero unless given.
        """
        zero = torch.zeros_like(pose[:, :3])
        neck = zero if neck is None else neck
        eyes = torch.cat([zero, zero], dim=1) if eyes is None else eyes
        full_pose = torch.cat([pose[:, :3], neck, pose[:, 3:], eyes], dim=1)
        rotations = rotation_matrix(full_pose.unflatten(1, (-1, 3)))  # (B, 5, 3, 3)

        # 1. Identity and expression offsets; joints follow the shaped head.
        shaped = self._shaped(shape, exp)
        joints = torch.einsum("jv,bvc->bjc", self.joint_regressor, shaped)
        # 2. Pose correctives.
        corrected = shaped + torch.einsum("vck,bk->bvc", self.pose_basis, pose_features(rotations))
        # 3. Skinning.
        vertices = skin(corrected, self.skin_weights, joint_transforms(rotations, joints))
        return Head(vertices, self._landmarks2d(vertices, rotations), self._landmarks3d(vertices))

    def joints(self, shape: Tensor, exp: Tensor) -> Tensor:
        """Joint positions at rest: shape (B,100), exp (B,50) -> (B,5,3) metres."""
        return torch.einsum("jv,bvc->bjc", self.joint_regressor, self._shaped(shape, exp))

    def _shaped(self, shape: Tensor, exp: Tensor) -> Tensor:
        shaped = blend_shapes(self.v_template, self.shape_basis, shape)
        return shaped + torch.einsum("vck,bk->bvc", self.exp_basis, exp)

    def _landmarks2d(self, vertices: Tensor, rotations: Tensor) -> Tensor:
        row = contour_bin(rotations)
        size = len(vertices)
        triangles = torch.cat([self.dynamic_triangles[row], self.static_triangles.expand(size, -1, -1)], dim=1)
        bary = torch.cat([self.dynamic_bary[row], self.static_bary.expand(size, -1, -1)], dim=1)
        return points_on_faces(vertices, triangles, bary)

    def _landmarks3d(self, vertices: Tensor) -> Tensor:
        size = len(vertices)
        return points_on_faces(vertices, self.full_triangles.expand(size, -1, -1), self.full_bary.expand(size, -1, -1))
