"""GLB files: by the Khronos validator, by a second implementation of skinning, and in Blender."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
import pytest
import torch

from deca_core import DECA, Codes
from deca_core.codes import CodesError
from deca_core.export import Animation, RiggedHead, glb, head_glb, rig_of, rigged_head
from deca_core.export.mesh import ExportError
from deca_core.export.rig import CORRECTIVE_WEIGHTS, JOINTS, corrective_weight, quaternions
from deca_core.flame import rotation_matrix
from deca_core.images import ImageError

HERE = Path(__file__).parent
VALIDATOR = HERE.parents[1] / "node_modules" / "gltf-validator"
DRIVERS = HERE.parents[2] / "docs" / "export" / "drivers.py"
MM = 1000
ANGLE = 0.3  # radians that the jaw is opened by
CLIP = Animation(
    times=np.arange(4, dtype=np.float32) / 25,
    weights=np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32) * 0.3,
    jaw=np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32) * 0.2,
    head=np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32) * 0.3,
)


@pytest.fixture(scope="module")
def files(model, codes, heads, tmp_path_factory) -> list[Path]:
    """Three heads with ten targets, one with all and a clip, the first one with sparse targets."""
    folder = tmp_path_factory.mktemp("glb")
    rig = rig_of(model.bundle)
    made = []
    with torch.inference_mode():
        out = model.decode(codes)
    for index in range(3):
        one = type(out)(**{name: value[index : index + 1] for name, value in vars(out).items()})
        head = rigged_head(model, codes[index : index + 1], one, f"head {index}", extras={"face": index})
        made.append(folder / f"{index}.glb")
        made[-1].write_bytes(glb(rig, head))
    made.append(folder / "clip.glb")
    made[-1].write_bytes(head_glb(model, codes[:1], expressions=50, animation=CLIP))
    made.append(folder / "sparse.glb")
    made[-1].write_bytes(head_glb(model, codes[:1], sparse=True))
    return made


def validated(paths: list[Path]) -> list[dict[str, Any]]:
    if not VALIDATOR.is_dir() or shutil.which("node") is None:
        pytest.skip(f"{VALIDATOR} or node is not installed. Run: make node (needs npm)")
    command = ["node", str(HERE / "in_validator.js"), str(VALIDATOR), *map(str, paths)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# --- a second implementation ------------------------------------------------------------------------------------------


class Read:
    """A GLB file as pygltflib has it, evaluated by the words of the specification."""

    def __init__(self, path: Path) -> None:
        self.gltf = pygltflib.GLTF2().load_binary(str(path))
        self.blob = self.gltf.binary_blob()
        self.mesh = self.gltf.meshes[0]
        self.names = (self.mesh.extras or {}).get("targetNames", [])

    def accessor(self, index: int) -> np.ndarray:
        one = self.gltf.accessors[index]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[one.type]
        if one.bufferView is None:
            values = np.zeros((one.count, width), np.float32)
        else:
            values = self._view(one.bufferView, one.componentType, one.count * width).reshape(-1, width).copy()
        if one.sparse is not None:
            place = self._view(one.sparse.indices.bufferView, one.sparse.indices.componentType, one.sparse.count)
            data = self._view(one.sparse.values.bufferView, one.componentType, one.sparse.count * width)
            values[place] = data.reshape(-1, width)
        return values

    def _view(self, index: int, component: int, count: int) -> np.ndarray:
        view = self.gltf.bufferViews[index]
        dtype = {5126: "<f4", 5121: "u1", 5123: "<u2", 5125: "<u4"}[component]
        return np.frombuffer(self.blob, dtype, count, view.byteOffset)

    def vertices(
        self, weights: dict[str, float] | None = None, turns: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Skinned positions; weights by target and axis-angle by joint, None: as the file has them."""
        primitive = self.mesh.primitives[0]
        amounts = self.mesh.weights if weights is None else [weights.get(name, 0.0) for name in self.names]
        points = self.accessor(primitive.attributes.POSITION).astype(np.float64)
        for amount, target in zip(amounts, primitive.targets, strict=True):
            points += amount * self.accessor(target["POSITION"])
        skin = self.gltf.skins[0]
        bind = self.accessor(skin.inverseBindMatrices).astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)
        world = {}
        for node in skin.joints:  # parents come first
            self._place(node, turns, world)
        matrices = np.stack([world[node] @ inverse for node, inverse in zip(skin.joints, bind, strict=True)])
        joints = self.accessor(primitive.attributes.JOINTS_0)
        shares = self.accessor(primitive.attributes.WEIGHTS_0)
        blended = np.einsum("vj,vjik->vik", shares, matrices[joints])
        return np.einsum("vij,vj->vi", blended[:, :3, :3], points) + blended[:, :3, 3]

    def _place(self, node: int, turns: dict[str, np.ndarray] | None, world: dict[int, np.ndarray]) -> None:
        one = self.gltf.nodes[node]
        local = np.eye(4)
        local[:3, 3] = one.translation or 0
        if turns is not None:
            local[:3, :3] = rotation_matrix(torch.from_numpy(turns.get(one.name, np.zeros(3)))).numpy()
        elif one.rotation:
            x, y, z, w = one.rotation
            local[:3, :3] = np.eye(3) + 2 * np.array(
                [
                    [-y * y - z * z, x * y - z * w, x * z + y * w],
                    [x * y + z * w, -x * x - z * z, y * z - x * w],
                    [x * z - y * w, y * z + x * w, -x * x - y * y],
                ]
            )
        parent = next((i for i, other in enumerate(self.gltf.nodes) if node in (other.children or [])), None)
        world[node] = local if parent is None else world[parent] @ local


def flame(model: DECA, codes: Codes, exp: torch.Tensor, pose: torch.Tensor, **other: torch.Tensor) -> np.ndarray:
    """Our layer's vertices, cut at seams as in the file."""
    vertices = model.flame(codes.shape, exp, pose, **other).vertices[0].numpy()
    return vertices[rig_of(model.bundle).split.vertex]


def farthest(found: Any, expected: np.ndarray) -> float:
    """Millimetres."""
    return float(np.linalg.norm(np.asarray(found) - expected, axis=1).max()) * MM


# --- tests ------------------------------------------------------------------------------------------------------------


def test_the_validator_finds_nothing(files):
    for path, issues in zip(files, validated(files), strict=True):
        assert issues["messages"] == [], path


def test_the_validator_is_alive(files, tmp_path):
    data = files[0].read_bytes().replace(b'"metallicFactor":0.0', b'"metallicFactor":9.0')
    (tmp_path / "spoilt.glb").write_bytes(data)
    assert validated([tmp_path / "spoilt.glb"])[0]["numErrors"] == 1


def test_as_it_opens_it_is_the_reconstruction(model, codes, files):
    for index, path in enumerate(files[:3]):
        own = codes[index : index + 1]
        assert farthest(Read(path).vertices(), flame(model, own, own.exp, own.pose)) < 0.1
        read = Read(path)
        assert read.names[:2] == ["smile", "frown"]
        assert read.names[10:] == ["pose_jaw_x", "expression_rest"]
        assert [node.name for node in read.gltf.nodes[1:]] == list(JOINTS)
        assert read.gltf.scenes[0].extras == {"face": index}


def test_targets_are_whole_unless_sparse_ones_are_asked_for(files):
    """Importers that know no sparse accessors, or none without a buffer view, read the default file."""
    whole, sparse = Read(files[0]), Read(files[4])
    assert all(one.sparse is None and one.bufferView is not None for one in whole.gltf.accessors)
    found = [read.mesh.primitives[0].targets for read in (whole, sparse)]
    for one, other in zip(*found, strict=True):
        assert np.array_equal(whole.accessor(one["POSITION"]), sparse.accessor(other["POSITION"]))
    lids = sparse.gltf.accessors[found[1][sparse.names.index("lids_close")]["POSITION"]]
    assert lids.sparse.count < 300
    assert all(one.bufferView is not None for one in sparse.gltf.accessors)
    zeros = {accessor.bufferView for accessor in sparse.gltf.accessors if accessor.sparse}
    assert len(zeros) == 1
    view = sparse.gltf.bufferViews[zeros.pop()]
    assert not any(sparse.blob[view.byteOffset : view.byteOffset + view.byteLength])
    assert files[4].stat().st_size < files[0].stat().st_size - 300_000


def test_joints_bring_the_correctives_that_the_bundle_has(model):
    rig = rig_of(model.bundle, 3, ("neck", "jaw", "left_eye", "right_eye"))
    assert rig.names[3:] == ("pose_jaw_x", "pose_left_eye_x", "pose_right_eye_x")


def test_flame_with_every_corrective_and_five_influences(golden, tmp_path):
    """The small head of the golden files has random correctives for all features and joints, as FLAME's are full."""
    from tests.deca_core.conftest import mini_bundle

    bundle = mini_bundle(golden("mini_head.npz"))
    layer = DECA(bundle, backbone="mobilenet_v3_small")
    rig = rig_of(bundle, 50, ("neck", "jaw", "left_eye", "right_eye"))
    assert len(rig.correctives) == 36
    torch.manual_seed(0)
    own = Codes.zeros(1).replace(shape=torch.randn(1, 100) * 0.1)
    turns = {name: (torch.randn(3) * 0.4).double().numpy() for name in JOINTS}
    head = rigged_head(layer, own, layer.decode(own))
    weights = rig.target_weights(np.zeros((1, 50)), {name: turn[None] for name, turn in turns.items()})[0]
    (tmp_path / "mini.glb").write_bytes(glb(rig, head))
    found = Read(tmp_path / "mini.glb").vertices(dict(zip(rig.names, weights.tolist(), strict=True)), turns)
    pose = torch.from_numpy(np.concatenate([turns["root"], turns["jaw"]])).float()[None]
    neck = torch.from_numpy(turns["neck"]).float()[None]
    eyes = torch.from_numpy(np.concatenate([turns["left_eye"], turns["right_eye"]])).float()[None]
    expected = layer.flame(own.shape, torch.zeros(1, 50), pose, neck, eyes).vertices[0].numpy()[rig.split.vertex]
    kept = np.sort(bundle.skin_weights[rig.split.vertex], axis=1)[:, 1:].sum(1) > 1 - 1e-4  # four joints are all
    print("five influences lose", farthest(found, expected), "mm; of four", farthest(found[kept], expected[kept]))
    assert farthest(found[kept], expected[kept]) < 0.02  # a share of 1e-4 of some 150 mm


def test_correctives_by_quaternion_are_correctives_by_matrix():
    rotations = np.random.default_rng(0).normal(size=(20, 3))
    x, y, z, w = quaternions(rotations).T
    for part, formula in CORRECTIVE_WEIGHTS.items():
        by_quaternion = eval(formula, {}, {"x": x, "y": y, "z": z, "w": w})  # noqa: S307 our own constants
        assert np.allclose(by_quaternion, corrective_weight(part, rotations), atol=1e-12), part


def test_a_clip_plays_the_frames(model, codes, files):
    read = Read(files[3])
    [clip] = read.gltf.animations
    played = {
        read.gltf.nodes[one.target.node].name + "." + one.target.path: clip.samplers[one.sampler]
        for one in clip.channels
    }
    assert set(played) == {"head.weights", "jaw.rotation", "root.rotation"}
    times = read.accessor(played["jaw.rotation"].input)[:, 0]
    assert np.allclose(times, CLIP.times)
    weights = read.accessor(played["head.weights"].output).reshape(4, -1)
    exp = codes[:1].exp.repeat(4, 1)
    exp[:, :12] = torch.from_numpy(CLIP.weights)
    for frame in range(4):
        pose = torch.from_numpy(np.concatenate([CLIP.head[frame], CLIP.jaw[frame]]))[None]
        turns = {"jaw": CLIP.jaw[frame].astype(float), "root": CLIP.head[frame].astype(float)}
        found = read.vertices(dict(zip(read.names, weights[frame].tolist(), strict=True)), turns)
        assert farthest(found, flame(model, codes[:1], exp[frame : frame + 1], pose)) < 0.1
    for name, turns in (("jaw", CLIP.jaw), ("root", CLIP.head)):
        stored = read.accessor(played[f"{name}.rotation"].output)
        assert np.allclose(np.abs((stored * quaternions(turns)).sum(1)), 1, atol=1e-6)
        assert ((stored[1:] * stored[:-1]).sum(1) > 0).all()


def test_several_heads_in_one_file_are_refused(model, codes, heads):
    out = model.decode(codes)
    for several in (
        lambda: head_glb(model, codes),
        lambda: head_glb(model, codes[:0]),
        lambda: head_glb(model, codes[:1], image=torch.rand(2, 3, 224, 224)),
        lambda: rigged_head(model, codes, out),
    ):
        with pytest.raises(ExportError, match=r"[0-9] heads, a file holds one"):
            several()


def test_codes_straight_from_the_networks_and_images_of_any_kind(model):
    """As a notebook has them: with gradient, and the crop as uint8."""
    crop = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    codes = model.encode(crop)
    assert codes.exp.requires_grad
    made = head_glb(model, codes, image=crop)
    assert made == head_glb(model, codes, image=crop.float() / 255)
    with pytest.raises(ImageError, match="divide by 255"):
        head_glb(model, codes, image=crop.float())


def test_what_is_not_finite_is_refused(model, codes):
    spoilt = codes[:1].replace(exp=codes.exp[:1] * float("nan"))
    with pytest.raises(CodesError, match="exp of face 0 of 1 is not finite"):
        head_glb(model, spoilt)
    own = {name: getattr(codes, name)[0].numpy() for name in ("shape", "exp", "pose")}
    with pytest.raises(ExportError, match="head: pose is not finite"):
        RiggedHead("head", **own | {"pose": own["pose"] * np.inf})
    with pytest.raises(ExportError, match=r"head: exp has the shape \(3, 50\)"):
        RiggedHead("head", **own | {"exp": codes.exp.numpy()})


def test_clips_that_do_not_fit_are_refused(model, codes):
    def play(**changes: Any) -> None:
        clip = Animation(**{**vars(CLIP), **changes})
        head = rigged_head(model, codes[:1], model.decode(codes[:1]))
        glb(rig_of(model.bundle), head, clip)

    with pytest.raises(ValueError, match="12 expression components, the rig has targets for 10"):
        play()
    with pytest.raises(ValueError, match="4 times, 4 rows of weights and 2 of jaws"):
        play(jaw=CLIP.jaw[:2])
    with pytest.raises(ValueError, match="times must grow"):
        play(times=CLIP.times[::-1].copy())
    with pytest.raises(ExportError, match="animation: times is not finite"):
        play(times=CLIP.times * np.float32("nan"))
    with pytest.raises(ValueError, match="51 of the 50 components"):
        rig_of(model.bundle, 51)


# --- Blender ----------------------------------------------------------------------------------------------------------


@cache
def blender() -> str:
    """The program; skips where it is absent or cannot use our numpy."""
    program = shutil.which("blender")
    if program is None:
        pytest.skip("blender is not installed: apt-get install blender")
    words = "import sys; print('py', *sys.version_info[:2])"
    command = [program, "--background", "--factory-startup", "--python-expr", words]
    about = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if f"py {sys.version_info[0]} {sys.version_info[1]}" not in about:
        pytest.skip("Blender's Python is another version than this one, whose numpy it would need")
    return program


def in_blender(path: Path, folder: Path, **request: Any) -> dict[str, Any]:
    """What in_blender.py found."""
    packages = str(Path(np.__file__).parents[1])
    (folder / "request.json").write_text(json.dumps({"packages": packages, "pose": {}, "keys": {}, **request}))
    script = [str(HERE / "in_blender.py"), "--", str(path), str(folder / "request.json"), str(folder / "answer.json")]
    command = [blender(), "--background", "--factory-startup", "--python-exit-code", "3", "--python", *script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("file", [0, 4], ids=["dense", "sparse"])
def test_blender_poses_it_as_our_layer_does(model, codes, files, file, tmp_path):
    keys = {"smile": 1.0, "pose_jaw_x": float(np.sin(ANGLE))}
    found = in_blender(files[file], tmp_path, pose={"jaw": [ANGLE, 0, 0]}, keys=keys)
    assert found["bones"] == list(JOINTS)
    assert found["keys"] == ["Basis", *rig_of(model.bundle).names, "expression_rest"]
    assert found["images"] == ["base_colour", "normals"]
    own = codes[:1]
    assert farthest(found["as_imported"], flame(model, own, own.exp, own.pose)) < 0.1
    smile = torch.eye(50)[:1]
    open_jaw = torch.tensor([[0, 0, 0, ANGLE, 0, 0]])
    error = farthest(found["posed"], flame(model, own, smile, open_jaw))
    print(f"Blender, jaw {ANGLE} and smile 1: {error:.4f} mm")
    assert error < 0.1


@pytest.mark.slow
def test_blender_drivers_set_the_correctives(model, codes, files, tmp_path):
    """docs/export/drivers.py, run in Blender: turning the bone about any axis is enough."""
    turn = [ANGLE, 0.1, -0.05]
    found = in_blender(files[0], tmp_path, pose={"jaw": turn}, keys={"smile": 1.0}, drivers=str(DRIVERS))
    expected = flame(model, codes[:1], torch.eye(50)[:1], torch.tensor([[0, 0, 0, *turn]]))
    error = farthest(found["posed"], expected)
    print(f"Blender with drivers, smile 1: {error:.4f} mm")
    assert error < 0.1


@pytest.mark.slow
def test_blender_plays_the_clip(model, codes, files, tmp_path):
    found = in_blender(files[3], tmp_path)
    assert len(found["actions"]) == 2  # bones and shape keys
    exp = codes[:1].exp.clone()
    exp[:, :12] = torch.from_numpy(CLIP.weights[-1:])
    pose = torch.from_numpy(np.concatenate([CLIP.head[-1], CLIP.jaw[-1]]))[None]
    assert farthest(found["last_frame"], flame(model, codes[:1], exp, pose)) < 0.1
