"""The frozen networks against the model they come from, and how far half precision may be from float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import deca_core.inference
from deca_core import DECA
from deca_core.crop import crop_transform, square_from_box, warp
from deca_core.inference import LIMITS, Deviation, Inference, choose_precision, deviation, smooth_images

SMALL = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """Three crops of the public-domain photograph, differently wide and high."""
    from skimage import data

    image = data.astronaut()
    boxes = [(175, 70, 270, 180), (165, 60, 280, 190), (185, 80, 275, 170)]
    crops = [warp(image, crop_transform(square_from_box(np.array(box)))) for box in boxes]
    return torch.from_numpy(np.stack(crops))


@pytest.fixture(scope="module")
def exact(shipped) -> Inference:
    return Inference(shipped, "fp32")


@torch.inference_mode()
def test_float32_answers_as_the_model(shipped, exact, faces):
    expected = shipped.encode(faces)
    for batch in (faces, faces[:1]):  # no batch size is frozen in
        codes = exact.codes(batch)
        for name, value in codes.items():
            truth = getattr(expected, name)[: len(batch)]
            assert value.dtype == torch.float32
            assert (value - truth).abs().max() <= 1e-5 * max(1.0, float(truth.abs().max())), name
    maps = exact.displacement(expected)
    assert maps.shape == (3, 256, 256)
    assert (maps - shipped.displacement(expected)[:, 0]).abs().max() < 1e-8  # metres


@pytest.mark.slow
@torch.inference_mode()
def test_the_default_stays_within_the_limits(shipped, exact, faces):
    """1 % of the codes, 0.1 mm, 5 um: of whatever `auto` takes here, on faces that it has not seen."""
    chosen = Inference(shipped, choose_precision(shipped).precision)
    found = deviation(shipped, exact, chosen, faces)
    assert found.within(LIMITS), found


@pytest.mark.slow
@torch.inference_mode()
def test_bfloat16_is_off_by_its_rounding_and_no_more(shipped, exact, faces):
    """The small weights come to 0.1 mm and more: the posed head turns with the last bits of its pose. mixed leaves E_c
    in float32, and with it the head.
    """
    mixed = deviation(shipped, exact, Inference(shipped, "mixed"), faces)
    assert 1e-5 < mixed.codes < LIMITS.codes
    assert mixed.vertices_mm == 0
    found = deviation(shipped, exact, Inference(shipped, "bf16"), faces)
    assert 1e-5 < found.codes < LIMITS.codes  # another arithmetic
    assert found.vertices_mm < 0.3
    assert found.displacement_um < LIMITS.displacement_um


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("backbone", [SMALL, "dlib"])
def test_half_precision_knows_every_kind_of_backbone(bundle, backbone):
    """Convolutions alone, and a resize that bfloat16 has no kernel for."""
    torch.manual_seed(0)
    model = DECA(bundle, backbone)
    codes = [Inference(model, precision).codes(smooth_images(2)) for precision in ("fp32", "bf16")]
    for exact, half in ((getattr(codes[0], name), getattr(codes[1], name)) for name in ("shape", "detail")):
        assert half.dtype == torch.float32
        assert (half - exact).norm() < 0.03 * exact.norm()


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("precision", "batch"), [("mixed", 2), ("fp32", 4)])  # F_d takes two of either
def test_compiled_networks_answer_any_number_of_faces(shipped, faces, monkeypatch, precision, batch):
    """One batch size is compiled: fewer faces are filled up, more are cut, and a face's answer depends on neither.

    Traced here, which is quicker; test_frozen.py compiles.
    """
    monkeypatch.setattr(deca_core.inference, "compiled", deca_core.inference.traced)
    plain, compiled = Inference(shipped, precision), Inference(shipped, precision, batch=batch)
    assert compiled.compiled
    assert not plain.compiled
    assert deviation(shipped, plain, compiled, faces).within(LIMITS)
    codes = compiled.codes(faces)
    single = compiled.codes(faces[2:])
    assert torch.equal(codes.shape[2:], single.shape)
    assert torch.equal(compiled.displacement(codes)[2:], compiled.displacement(single))


def test_without_a_compiler_the_networks_run_all_the_same(shipped, faces, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(deca_core.inference, "compiled", refuse)
    inference = Inference(shipped, "fp32", batch=8)
    assert not inference.compiled
    assert "no C++ compiler found" in caplog.text
    assert inference.codes(faces).shape.shape == (3, 100)


@pytest.mark.slow
def test_the_model_stays_as_it_is(shipped):
    before = {name: value.clone() for name, value in shipped.state_dict().items()}
    Inference(shipped, "bf16")
    assert all(torch.equal(value, before[name]) for name, value in shipped.state_dict().items())
    assert {value.dtype for value in shipped.parameters()} == {torch.float32}


def test_wrong_shapes_are_refused(shipped):
    with pytest.raises(ValueError, match=r"expected \(B, 3, 224, 224\)"):
        Inference(shipped).codes(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("speeds", "off", "chosen"),
    [
        ({"fp32": 10.0, "bf16": 4.0}, 0.5, "bf16"),
        ({"fp32": 10.0, "bf16": 9.5}, 0.5, "fp32"),  # hardly faster
        ({"fp32": 10.0, "bf16": 4.0}, 1.5, "fp32"),  # faster and wrong
        ({"fp32": 10.0, "bf16": 4.0}, math.nan, "fp32"),
        ({"fp32": 10.0, "bf16": 900.0, "mixed": 500.0}, 0.5, "fp32"),
        ({"fp32": 10.0, "bf16": 4.0, "mixed": 3.0}, 0.5, "mixed"),
    ],
)
def test_the_choice_weighs_speed_and_error(shipped, monkeypatch, speeds, off, chosen):
    class Dry:
        def __init__(self, model: DECA, precision: str, device: object) -> None:
            self.precision = precision

    def far(*_: object) -> Deviation:
        return Deviation(LIMITS.codes * off, LIMITS.vertices_mm * off, LIMITS.displacement_um * off)

    monkeypatch.setattr(deca_core.inference, "Inference", Dry)
    monkeypatch.setattr(deca_core.inference, "milliseconds_of", lambda one, *_: speeds.get(one.precision, 10.0))
    monkeypatch.setattr(deca_core.inference, "deviation", far)
    monkeypatch.setattr(deca_core.inference, "emulated", lambda *_: False)
    assert choose_precision(shipped).precision == chosen


def test_emulated_precisions_are_not_tried(shipped, monkeypatch):
    monkeypatch.setattr(deca_core.inference, "emulated", lambda *_: True)
    choice = choose_precision(shipped)
    assert choice.precision == "fp32"
    assert list(choice.milliseconds) == ["fp32"]


def test_an_emulated_precision_is_found_by_timing_a_product(monkeypatch):
    times = {torch.bfloat16: 50e-3, torch.float16: 3e-3, torch.float32: 1e-3}
    monkeypatch.setattr(deca_core.inference, "_seconds", lambda work, _: times[work().dtype])
    assert deca_core.inference.emulated(torch.bfloat16)
    assert not deca_core.inference.emulated(torch.float16)


def test_limits_hold_figure_by_figure():
    assert LIMITS.within(LIMITS)
    for change in ({"codes": 0.011}, {"vertices_mm": 0.11}, {"displacement_um": 5.1}):
        assert not Deviation(**{**vars(LIMITS), **change}).within(LIMITS)
