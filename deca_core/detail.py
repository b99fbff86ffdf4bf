"""Detail: the displacement decoder F_d and the detailed surface (paper section 4.2, eq. 9 and 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deca_core.codes import NUM_DETAIL

MAX_DISPLACEMENT = 0.01  # metres: F_d ends in tanh * 0.01
NUM_CONDITION = 3 + 50 + NUM_DETAIL  # jaw, expression, detail code
START = 0.01  # share of the usual random numbers that the last layer of F_d starts with
# The dense grid has no triangles at its rim: x in [2, w - 3), y in [5, h - 6).
RIM_LEFT, RIM_RIGHT, RIM_TOP, RIM_BOTTOM = 2, 3, 5, 6


class DetailDecoder(nn.Module):
    """F_d: (jaw, expression, detail code) (B,181) to the displacement z (B,1,256,256) in metres.

    Parameter names are those of the released checkpoint: `l1.0.*`, `conv_blocks.N.*`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Sequential(nn.Linear(NUM_CONDITION, 128 * 8 * 8))
        blocks: list[nn.Module] = [nn.BatchNorm2d(128)]
        for inputs, outputs in ((128, 128), (128, 64), (64, 64), (64, 32), (32, 16)):
            blocks += [
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs, eps=0.8),  # sic: the release passes 0.8 as eps
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.conv_blocks = nn.Sequential(*blocks, nn.Conv2d(16, 1, 3, padding=1), nn.Tanh())
        for value in self.last.parameters():  # all but flat: random weights would dent a face by half a millimetre
            value.data.mul_(START)

    @property
    def last(self) -> nn.Module:
        """The layer before tanh. Its weights are small by START, and so should be its learning rate: Adam's steps
        do not depend on the gradient's size, and steps of the usual size change the map by more than the height of
        wrinkles, so that the layers before learn nothing."""
        return self.conv_blocks[-2]

    def forward(self, condition: Tensor) -> Tensor:
        seed = self.l1(condition).unflatten(1, (128, 8, 8))
        return self.conv_blocks(seed) * MAX_DISPLACEMENT


def detail_surface(positions: Tensor, normals: Tensor, z: Tensor, mask: Tensor, fixed: Tensor) -> Tensor:
    """M' = M + (z mask + fixed) N on the UV grid, eq. 10.

    positions, normals (B,3,T,T) coarse surface; z (B,1,T,T) and fixed (T,T) metres; mask (T,T) in [0, 1] -> (B,3,T,T).
    """
    return positions + (z * mask + fixed) * normals


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of vectors along axis 1: (B,3,H,W) each. `torch.linalg.cross` takes seven times as long there."""
    (ax, ay, az), (bx, by, bz) = a.unbind(1), b.unbind(1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], dim=1)


def grid_normals(points: Tensor) -> Tensor:
    """Unit normals of a surface given on a regular grid, (B,3,H,W) -> (B,3,H,W); zero on the rim without triangles.

    Each cell has the triangles (y,x) (y+1,x) (y,x+1) and (y,x+1) (y+1,x) (y+1,x+1). A vertex normal is the sum of the
    cross products of its triangles: on a grid, differences of shifted maps and no scatter.
    """
    height, width = points.shape[2:]
    rows, columns = slice(RIM_TOP, height - RIM_BOTTOM), slice(RIM_LEFT, width - RIM_RIGHT)
    below, right = slice(RIM_TOP + 1, height - RIM_BOTTOM + 1), slice(RIM_LEFT + 1, width - RIM_RIGHT + 1)
    p00, p01 = points[:, :, rows, columns], points[:, :, rows, right]
    p10, p11 = points[:, :, below, columns], points[:, :, below, right]
    upper, lower = _cross(p10 - p00, p01 - p00), _cross(p10 - p01, p11 - p01)
    both = upper + lower
    total = torch.zeros_like(points)
    for vertex, area in (
        ((rows, columns), upper),
        ((below, columns), both),
        ((rows, right), both),
        ((below, right), lower),
    ):
        total[:, :, vertex[0], vertex[1]] += area
    return total / total.square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()


def detail_normals(positions: Tensor, normals: Tensor, z: Tensor, mask: Tensor, fixed: Tensor) -> Tensor:
    """Normals of M' inside the mask, coarse normals outside: (B,3,T,T). M and N carry no gradient (section 4.2)."""
    positions, normals = positions.detach(), normals.detach()
    dense = grid_normals(detail_surface(positions, normals, z, mask, fixed))
    return dense * mask + normals * (1 - mask)
