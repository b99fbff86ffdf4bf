"""What users hand to the networks: converted where there is one meaning, refused with the fix where there are two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deca_core.dlib_recognition import load_dlib
from deca_core.images import ImageError, as_batch
from deca_core.perceptual import random_vgg19
from deca_core.recognition import random_recognition

LIKE = torch.zeros(1)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Two images (2,224,224,3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)


@pytest.fixture(scope="module")
def batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def test_what_is_right_goes_through_as_it_is(batch):
    assert as_batch(batch, LIKE) is batch


def test_one_meaning_is_one_batch(pixels, batch):
    pil = [Image.fromarray(one) for one in pixels]
    for same in (
        pixels,
        pixels.transpose(0, 3, 1, 2),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        pixels / 255,
        batch.double(),
        list(pixels),
        tuple(batch),
        pil,
        [pil[0], batch[1]],
    ):
        torch.testing.assert_close(as_batch(same, LIKE), batch, atol=1e-6, rtol=0)
    torch.testing.assert_close(as_batch(pil[0], LIKE), batch[:1], atol=1e-6, rtol=0)
    torch.testing.assert_close(as_batch(pixels[0], LIKE), batch[:1], atol=1e-6, rtol=0)
    for half in (torch.float16, torch.bfloat16):
        found = as_batch(batch.to(half), LIKE)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, batch, atol=4e-3, rtol=0)
    assert as_batch(batch, LIKE.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda images: images * 255, r"values from 0 to 255, .*divide by 255"),
        (lambda images: images * 65535, "divide by 65535"),
        (lambda images: images * 2 - 1, r"in \[-1, 1\], take \(images \+ 1\) / 2"),
        (lambda images: (images - 0.45) / 0.22, "undo the normalisation"),
        (lambda images: images * 1.2 - 0.1, r"images\.clamp\(0, 1\)"),
        (lambda images: images / 255, "divided by 255 twice"),
        (lambda images: images.where(images < 0.999, torch.nan), "not finite"),
        (lambda images: images.where(images < 0.999, torch.inf), "not finite"),
        (lambda images: (images * 255).to(torch.int64), r"images are int64, .*images / 255"),
        (lambda images: (images * 65535).to(torch.int32).numpy().astype(np.uint16), "images / 65535"),
        (lambda images: images[..., :200], r"another. warp\(image, crop_transform"),
        (lambda images: images[:, :1], "of a grey one take expand"),
        (lambda images: torch.cat([images, images[:, :1]], 1), "without alpha"),
        (lambda images: images[0, 0], "expected \\(B, 3, 224, 224\\)"),
        (lambda images: [], "empty list"),
        (lambda images: "face.jpg", "got str"),
        (lambda images: images.numpy().astype(object), "array of object"),
        (lambda images: Image.new("RGBA", (224, 224)), r"mode RGBA. Fix: image.convert\('RGB'\)"),
        (lambda images: Image.new("RGB", (300, 300)), "another. warp"),
    ],
)
def test_what_has_no_one_meaning_is_refused_with_the_fix(batch, spoil, says):
    with pytest.raises(ImageError, match=f"encode: .*{says}"):
        as_batch(spoil(batch), LIKE)


def test_a_black_image_and_an_empty_batch_are_images():
    assert as_batch(torch.zeros(1, 3, 224, 224), LIKE).shape == (1, 3, 224, 224)
    assert as_batch(torch.zeros(0, 3, 224, 224), LIKE).shape == (0, 3, 224, 224)


@pytest.mark.parametrize(
    "load", [lambda: random_vgg19(["conv1_1"]), lambda: random_recognition().features, lambda: load_dlib().features]
)
def test_the_networks_of_the_losses_take_floats(load, batch):
    """On uint8, arithmetic would wrap round at 256."""
    call = load()
    assert call(batch * 1.3) is not None  # a rendering
    for wrong, says in (
        ((batch * 255).byte(), "images / 255"),
        (batch[0], "expected a tensor"),
        (batch.numpy(), "ndarray"),
    ):
        with pytest.raises(ImageError, match=says):
            call(wrong)
