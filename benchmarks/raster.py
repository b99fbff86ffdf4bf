"""Cost of rasterisation and of the rendering after it: `python -m benchmarks.raster`.

The procedural head (10 546 faces) in random poses, as large as in a training crop. Needs torch and numpy; measures
every backend that runs here. Milliseconds an image: the best and the median of all repeats.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import parser, save
from deca_core.assets import procedural_head
from deca_core.camera import project
from deca_core.detail import detail_normals
from deca_core.flame import FLAME
from deca_core.raster import Backend, rasterize
from deca_core.render import fragments, vertex_normals
from deca_core.uv import UVAtlas

SEED, SCALE = 0, 8.0  # of the poses; of the camera: the head covers some 60 % of the image
MODULES: dict[Backend, str] = {"numba": "numba", "triton": "triton", "pytorch3d": "pytorch3d", "reference": "numpy"}
Row = dict[str, float | str]


class Scene:
    """Heads of one batch on a device, and the timed work on them."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        bundle = procedural_head()
        generator = torch.Generator().manual_seed(SEED)
        shape, exp = torch.randn(batch, 100, generator=generator), torch.randn(batch, 50, generator=generator)
        pose = torch.randn(batch, 6, generator=generator) * torch.tensor([0.2, 0.4, 0.1, 0.1, 0, 0])
        cam = torch.tensor([[SCALE, 0.0, 0.0]]).repeat(batch, 1)
        with torch.no_grad():
            vertices = FLAME(bundle)(shape, exp, pose).vertices
        self.size = size
        self.faces = torch.from_numpy(bundle.faces).to(device)
        self.vertices = vertices.to(device).clone().requires_grad_()
        self.projected = project(vertices, cam).to(device).requires_grad_()
        self.atlas = UVAtlas(bundle).to(device)
        self.mask = torch.from_numpy(bundle.face_eye_mask).to(device)
        self.fixed = torch.from_numpy(bundle.fixed_displacement).to(device)
        self.z = torch.zeros(batch, 1, *self.mask.shape, device=device, requires_grad=True)

    def visibility(self, backend: Backend) -> Tensor:
        return rasterize(self.projected, self.faces, self.size, self.size, backend)

    def image(self, backend: Backend) -> Tensor:
        """Visibility, barycentrics and interpolated normals."""
        visible = fragments(self.visibility(backend), self.projected, self.faces)
        return visible.vertex_attributes(vertex_normals(self.vertices, self.faces), self.faces)

    def normals(self) -> Tensor:
        return vertex_normals(self.vertices, self.faces)

    def uv(self) -> Tensor:
        """Positions and normals to the UV map."""
        return self.atlas(torch.cat([self.vertices, self.vertices], dim=-1))

    def detail(self) -> Tensor:
        """Normals of the detailed surface for given positions and normals."""
        return detail_normals(self.maps[:, :3], self.maps[:, 3:], self.z, self.mask, self.fixed)

    @property
    def maps(self) -> Tensor:
        if not hasattr(self, "_maps"):
            self._maps = self.uv().detach()
        return self._maps


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int, images: int) -> dict[str, float]:
    """Return the best and median milliseconds an image of `repeats` runs, after two runs that compile and warm up."""
    spent = []
    warm = 2 if repeats > 1 else 0
    for _ in range(repeats + warm):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(1000 * (time.perf_counter() - started) / images)
    return {"best": round(min(spent[warm:]), 3), "median": round(statistics.median(spent[warm:]), 3)}


def usable(device: torch.device) -> list[Backend]:
    """Return the backends that run here on tensors of the device."""
    found = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
    return [name for name in found if name != "triton" or device.type == "cuda"]


def measure(scene: Scene, device: torch.device, repeats: int) -> list[Row]:
    images = len(scene.vertices)
    expected = scene.visibility("reference")
    rows: list[Row] = []

    def add(what: str, work: Callable[[], Tensor], repeats: int, note: str = "") -> None:
        rows.append({"what": what, **milliseconds(work, device, repeats, images), "note": note})
        print("{what:<44} {best:>9.3f} {median:>9.3f}  {note}".format(**rows[-1]), flush=True)

    def backward(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def both() -> Tensor:
            loss = work().square().mean()
            loss.backward()
            return loss

        return both

    for backend in usable(device):
        same = (scene.visibility(backend) == expected).double().mean().item()
        add(
            f"visibility, {backend}",
            lambda b=backend: scene.visibility(b),
            1 if backend == "reference" else repeats,
            f"{same:.5%} as the reference",
        )
        if backend != "reference":
            add(f"visibility to loss and back, {backend}", backward(lambda b=backend: scene.image(b)), repeats)
    for name, work in (("vertex normals", scene.normals), ("UV transfer, 6 channels", scene.uv)):
        with torch.no_grad():
            add(name, work, repeats)
        add(f"{name}, and back", backward(work), repeats)
    with torch.no_grad():
        add("detail normals on UV", scene.detail, repeats)
    add("detail normals on UV, and back", backward(scene.detail), repeats)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--size", type=int, default=224, help="pixels on a side")
    arguments.add_argument("--repeats", type=int, default=10)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    scene = Scene(options.batch, options.size, device)
    seen = (scene.visibility("reference") >= 0).double().mean().item()
    print(
        f"{machine}, torch {torch.__version__}, {options.threads} threads; batch {options.batch} of {options.size} px,"
    )
    print(f"{len(scene.faces)} faces that cover {seen:.0%}\n{'milliseconds an image':<44} {'best':>9} {'median':>9}")
    rows = measure(scene, device, options.repeats)
    settings = {"machine": machine, "torch": torch.__version__, "batch": options.batch, "size": options.size}
    save(options, {**settings, "rows": rows})


if __name__ == "__main__":
    main()
