"""Evaluation on tiny worlds: the truth itself as a method has no error, everything else has the error it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deca_core import DECA, Codes
from deca_core.assets import AssetBundle, procedural_head
from deca_core.camera import to_pixels
from deca_core.checkpoint import save_checkpoint
from deca_core.flame import rotation_matrix
from deca_core.metrics import MetricError
from pipelines.evaluate import check_inputs, evaluate
from pipelines.synth import synth
from schemas.evaluate import FIT_METHOD, MEAN_FACE, METRICS, EvaluateConfig
from schemas.ledger import Item
from schemas.parquet import fixed_values
from schemas.world import SynthConfig
from tasks.measure.evaluate import EvaluateWorker
from tasks.measure.evaluation_report import challenge_table, figures
from tasks.measure.methods import FaceCrop
from tasks.measure.now import NowDataset, obj_vertices, picked_points
from tasks.measure.world_figures import neutral_head, scanned_vertices
from tasks.measure.world_truth import EvaluateError, WorldTruth

PICTURE_SIZE = 192


@pytest.fixture(scope="module")
def bundle() -> AssetBundle:
    return procedural_head()


@pytest.fixture(scope="module")
def model(bundle) -> DECA:
    """An untrained small network."""
    torch.manual_seed(0)
    return DECA(bundle, backbone="mobilenet_v3_small")


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> str:
    return str(save_checkpoint(model, tmp_path_factory.mktemp("checkpoint") / "small"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> str:
    """Three subjects, two images of each; tests only read it."""
    dest = str(tmp_path_factory.mktemp("evaluate") / "world")
    world = {"identities": 3, "images_per_identity": 2, "size": PICTURE_SIZE, "seed": 5, "max_yaw": 30.0}
    assert synth(SynthConfig.model_validate({**world, "dest": dest, "ray": {"workers": 0}})).outcome == "complete"
    return dest


def config(source: str, dest: Path | str, checkpoint: str, **changes: object) -> EvaluateConfig:
    values = {"source": source, "dest": str(dest), "checkpoint": checkpoint, "ray": {"workers": 0}}
    return EvaluateConfig.model_validate({**values, "units": {"items_per_unit": 2}, **changes})


def planned(settings: EvaluateConfig) -> tuple[EvaluateWorker, list[list[Item]]]:
    """A worker, and the items of its units."""
    plan = evaluate.freeze_plan(settings, {"truth": "any"})
    return EvaluateWorker(settings), [unit.items for unit in plan.iter_units()]


class Truthful:
    """The truth as a method; `change` spoils the codes."""

    name = "truth"

    def __init__(self, worker: EvaluateWorker, change=lambda codes: codes) -> None:
        self.truth, self.figures = worker.benchmark.truth, worker.benchmark.figures
        self.change = change

    def encode(self, crops: Sequence[FaceCrop]) -> Codes:
        faces = self.truth.faces([crop.item.index for crop in crops])
        parts = [self.in_crop(face, crop) for face, crop in zip(faces, crops, strict=True)]
        return self.change(Codes.cat(parts))

    def in_crop(self, face, crop: FaceCrop) -> Codes:
        """The true codes with the camera of the crop, from where two points of the camera's plane come to lie."""
        scale, tx, ty = face.codes.cam[0].double().numpy()
        plane = np.array([[0.0, 0.0], [0.1, 0.1]])
        picture = (np.stack([scale * (plane[:, 0] + tx), -scale * (plane[:, 1] + ty)], 1) + 1) * face.size / 2
        seen = crop.from_image(picture) / 112 - 1
        own = (seen[1, 0] - seen[0, 0]) / 0.1
        return face.codes.replace(cam=torch.tensor([[own, seen[0, 0] / own, -seen[0, 1] / own]]).float())

    def detail(self, codes: Codes) -> Tensor:
        """What the world gives whoever has this shape."""
        people = [self.truth.subject(identity) for identity in sorted(set(self.truth.identities))]
        out = []
        for row in range(len(codes)):
            own = min(people, key=lambda person: float(np.abs(person.shape - codes.shape[row].numpy()).sum()))
            out.append(self.figures.wrinkles.displacement(own, codes.exp[row].numpy(), codes.jaw[row].numpy()))
        return torch.from_numpy(np.stack(out))[:, None]


@pytest.fixture(scope="module")
def judged(archive, checkpoint, tmp_path_factory):
    """(worker, items of all units): methods are put into the worker by each test."""
    return planned(config(archive, tmp_path_factory.mktemp("evaluations"), checkpoint))


def rows_of(judged, method, units: int = 1) -> dict[str, np.ndarray]:
    worker, all_units = judged
    worker.methods = [method]
    output = worker.process([item for unit in all_units[:units] for item in unit])
    assert not output.quarantine
    return {name: np.array(output.table[name].to_pylist(), dtype=object) for name in output.table.schema.names}


def test_the_truth_has_no_error(judged):
    rows = rows_of(judged, Truthful(judged[0]))
    limits = {
        "nme": 1e-3,  # float32 and the crop's rounding
        "nme_box": 1e-3,
        "lids": 0.005,  # gaze, which no code holds, moves the lids a little
        "pose_deg": 1e-3,
        "jaw_deg": 1e-3,
        "expression_mm": 1e-3,
        "shape_mm": 1e-3,
        "vertex_mm": 0.02,  # gaze again
        "albedo": 1e-6,
        "light": 1e-6,
        "displacement_mm": 1e-3,  # 16 bits over 4 mm
        "displacement_strength": 1e-3,
        "hidden_mm": 1e-3,
        "normal_deg": 1.0,  # 8 bits a coordinate
        "transfer_vertex_mm": 1e-3,
        "transfer_mm": 1e-6,
    }
    for name, limit in limits.items():
        assert max(rows[name]) < limit, name
    assert min(rows["displacement_corr"]) > 0.999
    assert min(rows["transfer_corr"]) > 0.999
    for column in ("scan_mm", "scan_metrical_mm"):
        assert max(max(row) for row in rows[column]) < 0.01, column
    # Wrinkles follow the expression, so neither the source's own nor none are right.
    assert min(rows["transfer_static_mm"]) > 1e-3
    assert (rows["transfer_coarse_mm"] > rows["transfer_mm"]).all()
    assert min(rows["psnr_db"]) > 13  # cameras, hair and shadows are no part of the codes


def test_each_error_shows_where_it_belongs(judged):
    def spoil(codes: Codes) -> Codes:
        pose = codes.pose.clone()
        # A turn after the head's own: about the axis that it already turns by, so that the angle is exact.
        pose[:, :3] *= 1 + np.radians(7.0) / pose[:, :3].norm(dim=1, keepdim=True)
        pose[:, 3] += np.radians(3.0)
        light = codes.light * 1.1
        return codes.replace(pose=pose, tex=codes.tex * 0, light=light, exp=codes.exp * 0)

    rows = rows_of(judged, Truthful(judged[0], spoil))
    assert rows["pose_deg"].astype(float) == pytest.approx(7.0, abs=1e-3)
    assert rows["jaw_deg"].astype(float) == pytest.approx(3.0, abs=1e-3)
    assert rows["light"].astype(float) == pytest.approx(0.1, abs=1e-5)
    assert min(rows["albedo"]) > 1e-3
    assert min(rows["expression_mm"]) > 0.1
    assert min(rows["nme"]) > 0.01
    assert max(rows["shape_mm"]) < 1e-3
    assert max(max(row) for row in rows["scan_mm"]) < 0.01  # neutral: expression and pose are taken out


def test_a_camera_that_is_off_moves_the_landmarks_by_as_much(judged):
    def shift(codes: Codes) -> Codes:
        cam = codes.cam.clone()
        cam[:, 1] += 10 / 112 / cam[:, 0]  # ten pixels of the crop
        return codes.replace(cam=cam)

    worker, units = judged
    rows = rows_of(judged, Truthful(worker, shift))
    crops = list(worker.benchmark.crops(units[0], []))
    for nme, crop in zip(rows["nme_box"], crops, strict=True):
        box = np.sqrt(np.prod(np.ptp(crop.landmarks, axis=0)))
        assert nme == pytest.approx(10 / crop.transform[0, 0] / box, rel=1e-3)


def test_a_rendering_without_light_is_worse(judged):
    lit = rows_of(judged, Truthful(judged[0]))["psnr_db"]
    dark = rows_of(judged, Truthful(judged[0], lambda codes: codes.replace(light=codes.light * 0)))["psnr_db"]
    assert (lit > dark + 3).all()


def test_what_turns_away_is_hidden(judged, bundle):
    figures, truth = judged[0].benchmark.figures, judged[0].benchmark.truth
    resting = figures.model.atlas(torch.from_numpy(bundle.v_template)[None])[0]
    turns = []
    for face in truth.faces(range(6)):
        hidden = figures._hidden(face)
        assert not hidden[~figures.mask].any()
        # The head's own left (x > 0) comes forward where the turned x axis points at the camera.
        forward = float(rotation_matrix(face.codes.pose[:, :3])[0, 2, 0])
        left, right = (hidden[figures.mask & (side.numpy() > 0)].mean() for side in (resting[0], -resting[0]))
        if abs(forward) > 0.1:
            turns.append(((right - left) * np.sign(forward), right, left))
    assert len(turns) >= 3
    assert min(turn[0] for turn in turns) > 0.05, turns


def test_an_error_where_nothing_is_seen_is_hidden(judged):
    worker, units = judged
    method = Truthful(worker)
    face = next(iter(worker.benchmark.truth.faces([units[0][0].index])))
    hidden = torch.from_numpy(worker.benchmark.figures._hidden(face))
    exact = method.detail
    method.detail = lambda codes: exact(codes) + 0.001 * hidden  # a millimetre
    worker.methods = [method]
    row = worker.process(units[0][:1]).table.to_pylist()[0]
    share = float(hidden.sum() / worker.benchmark.figures.mask.sum())
    assert 0.05 < share < 0.95
    assert row["hidden_mm"] == pytest.approx(1.0, abs=1e-3)
    assert row["displacement_mm"] == pytest.approx(np.sqrt(share), rel=1e-3)


@pytest.mark.slow
def test_networks_and_baselines_give_every_figure(judged, checkpoint, archive, tmp_path):
    worker, units = planned(config(archive, tmp_path, checkpoint, compare={"other": checkpoint}))
    output = worker.process(units[0])
    table = output.table
    assert table["method"].to_pylist() == ["model", "other", MEAN_FACE, FIT_METHOD] * 2
    flat = {"displacement_corr", "transfer_corr", "transfer_static_corr"}  # of the baselines' flat maps
    for metric in METRICS:
        known = [value is not None for value in table[metric.name].to_pylist()]
        assert known == [True, True, metric.name not in flat, metric.name not in flat] * 2, metric.name
    assert table.slice(0, 1).drop(["method"]).to_pydict() == table.slice(1, 1).drop(["method"]).to_pydict()
    mean = table.slice(2, 1).to_pydict()
    assert mean["nme_box"][0] < 0.15  # it lies on the face
    assert mean["scan_mm"][0]
    assert (fixed_values(table, "shape")[2] == 0).all()


@pytest.mark.slow
def test_a_fit_to_the_true_landmarks_beats_the_mean_face(judged, archive, checkpoint, bundle, tmp_path):
    worker, units = planned(config(archive, tmp_path, checkpoint))
    worker.methods = worker.methods[1:]
    table = worker.process([item for unit in units for item in unit]).table
    mean, fit = figures(table, bundle.shape_basis)
    assert (mean.method, fit.method) == (MEAN_FACE, FIT_METHOD)
    assert fit.metrics["nme"].mean < 0.005
    assert fit.metrics["pose_deg"].mean < 2
    for better in ("shape_mm", "vertex_mm", "expression_mm"):
        assert fit.metrics[better].mean < 0.8 * mean.metrics[better].mean, better
    assert fit.scan.median < 0.8 * mean.scan.median
    for same in ("albedo", "light", "displacement_mm", "transfer_coarse_mm"):
        assert fit.metrics[same] == mean.metrics[same], same


def test_baselines_are_chosen(archive, checkpoint, tmp_path):
    def methods(name: str, **changes: object) -> list[str]:
        return [method.name for method in planned(config(archive, tmp_path / name, checkpoint, **changes))[0].methods]

    assert methods("one", baselines=[FIT_METHOD]) == ["model", FIT_METHOD]
    assert methods("none", baselines=[]) == ["model"]
    with pytest.raises(ValueError, match="mean face"):
        config(archive, tmp_path, checkpoint, baselines=["median face"])
    with pytest.raises(ValueError, match="is taken"):
        config(archive, tmp_path, checkpoint, compare={FIT_METHOD: checkpoint})


@pytest.mark.slow
def test_figures_pool_vertices_and_tell_subjects_apart(judged, bundle):
    worker, units = judged
    worker.methods = [Truthful(worker)]
    table = worker.process([item for unit in units for item in unit]).table
    basis = bundle.shape_basis[bundle.face_vertices]
    [found] = figures(table, basis)
    assert (found.method, found.pictures) == ("truth", 6)
    assert found.scan.vertices == sum(len(row) for row in table["scan_mm"].to_pylist())
    assert found.scan.median < 1e-3
    assert found.shape_within_mm == pytest.approx(0, abs=1e-3)
    assert found.shape_between_mm > 1
    assert found.metrics["nme"].pictures == 6
    assert found.metrics["nme"].mean == pytest.approx(np.mean(table["nme"].to_pylist()))
    assert challenge_table([found]) == []
    assert figures(None, basis) == []


def test_a_driver_is_the_next_subject_whatever_the_units(archive):
    truth = WorldTruth(archive)
    assert truth.identities == ["000000"] * 2 + ["000001"] * 2 + ["000002"] * 2
    assert [truth.driver(index) for index in range(6)] == [2, 3, 4, 5, 0, 1]


def test_units_do_not_change_the_figures(judged):
    worker, units = judged
    worker.methods = [Truthful(worker)]
    apart = [worker.process([item]).table for unit in units[:1] for item in unit]
    together = worker.process(units[0]).table
    assert together.slice(1, 1).to_pydict() == apart[1].to_pydict()


def test_a_bad_image_costs_itself_alone(judged, tmp_path):
    worker, units = judged
    worker.methods = [Truthful(worker)]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    bad = Item(index=units[0][0].index, uri=str(broken))
    output = worker.process([bad, units[0][1]])
    assert [row.stage for row in output.quarantine] == ["decode"]
    assert output.table["face_id"].to_pylist() == ["000000-001"]


def test_codes_that_are_not_finite_cost_the_image_with_all_methods(judged):
    worker, units = judged

    def spoil(codes: Codes) -> Codes:
        shape = codes.shape.clone()
        shape[0] = torch.nan
        return codes.replace(shape=shape)

    spoilt = Truthful(worker, spoil)
    spoilt.name = "spoilt"
    worker.methods = [Truthful(worker), spoilt]
    output = worker.process(units[0])
    assert [(row.stage, row.error) for row in output.quarantine] == [("encode", "EncodeError")]
    assert output.quarantine[0].message.startswith("spoilt:")
    assert output.table["face_id"].to_pylist() == ["000000-001"] * 2


@pytest.mark.slow
def test_an_annotators_landmarks_choose_the_crop_and_are_fitted(archive, checkpoint, tmp_path):
    worker, units = planned(config(archive, tmp_path, checkpoint, landmarks="annotator"))
    quarantine: list = []
    items = [item for unit in units for item in unit]
    crops = list(worker.benchmark.crops(items, quarantine))
    assert len(crops) + len(quarantine) == 6
    assert len(crops) >= 3
    truth = WorldTruth(archive)
    fits = worker.methods[-1].encode(crops)
    for row, crop in enumerate(crops):
        [face] = truth.faces([crop.item.index])
        assert (crop.landmarks == face.landmarks).all()
        # What is fitted is what the annotator found, not the truth.
        points = to_pixels(worker.geometry.decode(fits[row : row + 1]).landmarks2d)[0].numpy()
        off, beside = (
            np.linalg.norm(points - crop.from_image(to), axis=1).mean() for to in (crop.found, face.landmarks)
        )
        assert off < 0.5 * beside
        inside = crop.from_image(face.landmarks)
        assert ((inside > -30) & (inside < 254)).all()


def test_what_is_no_world_is_refused_with_the_next_command(archive, checkpoint, tmp_path, bundle):
    with pytest.raises(EvaluateError, match="deca synth"):
        WorldTruth(str(tmp_path))
    other = tmp_path / "other"
    dataclasses.replace(bundle, v_template=bundle.v_template * np.float32(1.01)).save(other)
    with pytest.raises(EvaluateError, match="was rendered from"):
        check_inputs(EvaluateConfig(source=archive, dest=str(tmp_path / "out"), bundle=str(other), ray={"workers": 0}))
    photo = next((Path(archive) / "photos").rglob("*.jpg"))
    data = photo.read_bytes()
    photo.unlink()
    try:
        with pytest.raises(EvaluateError, match="1 of 6 images"):
            WorldTruth(archive).items()
    finally:
        photo.write_bytes(data)


def test_a_scanner_sees_the_face_and_no_inside(model, bundle):
    seen = scanned_vertices(model)
    assert np.isin(bundle.face_vertices, seen).mean() > 0.95
    assert len(seen) < 0.95 * bundle.num_vertices


# --- NoW ---

PICKED = """<!DOCTYPE PickedPoints>
<PickedPoints>
 <DocumentData><DataFileName name="scan.obj"/></DocumentData>
{points}
</PickedPoints>
"""


def write_now(root: Path, model: DECA, shapes: Tensor, inside: str = "") -> None:
    """The dataset's layout with heads of `shapes` as scans, in another place and in metres for every second one."""
    base = root / inside
    lines = []
    for number, shape in enumerate(shapes):
        subject, place = f"FaMoS_{number:03d}", f"FaMoS_{number:03d}/selfie/IMG_1"
        lines.append(f"{place}.jpg")
        for folder in ("iphone_pictures", "detected_face"):
            (base / folder / subject / "selfie").mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (300, 260, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "iphone_pictures" / f"{place}.jpg")
        box = {"left": 60.0, "top": 80.0, "right": 200.0, "bottom": 240.0}
        np.save(base / "detected_face" / f"{place}.npy", np.array(box, dtype=object), allow_pickle=True)
        vertices, landmarks = neutral_head(model.flame, shape[None])
        unit = 0.001 if number % 2 else 1.0
        turned = np.concatenate([vertices, landmarks])[:, [2, 0, 1]] + np.array([5, -40, 9])
        vertices, landmarks = unit * turned[: len(vertices)], unit * turned[len(vertices) :]
        for folder in ("scans", "scans_lmks_onlypp"):
            (root / folder / subject).mkdir(parents=True)
        text = "".join(f"v {x:.7f} {y:.7f} {z:.7f}\n" for x, y, z in vertices)
        (root / "scans" / subject / "neutral.obj").write_text(f"# scan\n{text}vn 0 0 1\nf 1 2 3\n")
        points = "\n".join(
            f' <point name="{i}" active="1" y="{y:.7f}" x="{x:.7f}" z="{z:.7f}"/>'
            for i, (x, y, z) in enumerate(landmarks)
        )
        (root / "scans_lmks_onlypp" / subject / "neutral_picked_points.pp").write_text(PICKED.format(points=points))
    (root / "imagepathsvalidation.txt").write_text("\n".join(lines) + "\n")


class Told:
    """A method that is told the shapes; what else it says must not matter."""

    name = "told"

    def __init__(self, shapes: Tensor) -> None:
        self.shapes = shapes

    def encode(self, crops: Sequence[FaceCrop]) -> Codes:
        codes = Codes.zeros(len(crops))
        index = [crop.item.index for crop in crops]
        return codes.replace(shape=self.shapes[index], exp=codes.exp + 0.5, pose=codes.pose + 0.3)

    def detail(self, codes: Codes) -> Tensor:
        raise AssertionError("NoW has no detail")


def test_now(model, bundle, checkpoint, tmp_path):
    shapes = torch.randn(2, 100, generator=torch.Generator().manual_seed(1)) * 0.8
    write_now(tmp_path / "now", model, shapes)
    worker, [items] = planned(config(str(tmp_path / "now"), tmp_path / "out", checkpoint, benchmark="now"))
    [square, _] = [worker.benchmark.dataset.square(picture) for picture in worker.benchmark.dataset.images]
    assert (square.center, square.size) == ((130.0, 160.0), 240.0)
    worker.methods = [Told(shapes), worker.methods[-1]]
    output = worker.process(items)
    assert not output.quarantine
    told, mean = figures(output.table, bundle.shape_basis)
    assert mean.method == MEAN_FACE  # the last: boxes are nothing to fit to
    assert told.scan.mean < 0.05
    assert told.scan_metrical.mean < 0.05
    assert mean.scan.mean > 10 * told.scan.mean
    assert told.challenges == {"selfie": told.scan}
    assert output.table["identity_id"].to_pylist() == ["FaMoS_000"] * 2 + ["FaMoS_001"] * 2
    assert challenge_table([told])[0]["selfie"] == f"{told.scan.median:.3f}"


def test_now_with_images_in_the_release_folder(model, tmp_path):
    write_now(tmp_path, model, torch.zeros(1, 100), "final_release_version")
    dataset = NowDataset(str(tmp_path))
    [item] = dataset.items()
    assert Path(item.uri).is_file()
    assert dataset.square(dataset.images[0]).size == 240.0


def test_an_incomplete_now_is_refused_before_any_work(model, tmp_path):
    write_now(tmp_path / "now", model, torch.zeros(1, 100))
    (tmp_path / "now/scans/FaMoS_000/neutral.obj").unlink()
    with pytest.raises(EvaluateError, match=r"FaMoS_000 holds 0 files \.obj"):
        NowDataset(str(tmp_path / "now")).items()
    with pytest.raises(EvaluateError, match=r"no imagepathstest\.txt"):
        NowDataset(str(tmp_path / "now"), "test")
    (tmp_path / "now/imagepathsvalidation.txt").write_text("../../etc/passwd\n")
    with pytest.raises(EvaluateError, match="is not <subject>"):
        NowDataset(str(tmp_path / "now"))


def test_scan_files_are_read_or_refused():
    assert obj_vertices(b"v 1 2 3 0.5 0.5 0.5\nvt 0 0\nv\t4 5 6\r\nf 1 2 3\n", "a").tolist() == [[1, 2, 3], [4, 5, 6]]
    for bad in (b"", b"v 1 2\n", b"v 1 2 x\n", b"v 1 2 nan\n"):
        with pytest.raises(MetricError, match=r"b\.obj"):
            obj_vertices(bad, "b.obj")
    text = "\n".join("1 2 3" for _ in range(7))
    assert picked_points(text, "c").shape == (7, 3)
    for bad_text in ("1 2 3", text + "\n1 2", '<point x="1" y="2"/>'):
        with pytest.raises(MetricError, match=r"d\.pp"):
            picked_points(bad_text, "d.pp")
