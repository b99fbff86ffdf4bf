"""The picture of docs/export.md, rendered by Blender from an exported GLB: `python -m benchmarks.blender_still [FILE]`.

A person of the embedded world three times: as exported, smiling, and with the jaw opened, moved in Blender by its bone
and shape keys (docs/export/drivers.py). Cycles on the CPU; needs Blender, whose Python must have numpy or be of this
interpreter's version.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deca_core.assets import procedural_head
from deca_core.export import glb, rig_of, rigged_head
from deca_core.uv import image_on_uv
from deca_world import Limits, World
from tasks.models.loading import GeometryModel
from tasks.models.outputs import head_of

SEED, PERSON, PICTURE = 0, 1, 0  # bald, as the mesh is
STILL = Path("docs/export/blender.jpg")
DRIVERS = Path(__file__).parents[1] / "docs" / "export" / "drivers.py"
QUALITY = 88

SCENE = """
import sys
glb, drivers, packages, output = sys.argv[sys.argv.index("--") + 1:]
sys.path.append(packages)
import bpy
from mathutils import Quaternion, Vector

bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
moves = ((None, None), ({"smile": 1.0, "cheek_raise": 0.6}, 0.0), ({"brow_raise": 1.0}, 0.3))
for place, (keys, jaw) in enumerate(moves):
    before = set(bpy.data.objects)
    bpy.ops.import_scene.gltf(filepath=glb)
    new = set(bpy.data.objects) - before
    armature = next(one for one in new if one.type == "ARMATURE")
    mesh = next(one for one in new if one.type == "MESH" and one.vertex_groups)
    armature.location.x += 0.235 * (place - 1)
    bpy.context.view_layer.objects.active = mesh
    exec(compile(open(drivers).read(), drivers, "exec"))
    root = armature.pose.bones["root"]
    root.rotation_mode, root.rotation_quaternion = "QUATERNION", (1, 0, 0, 0)
    if keys is not None:
        for key in mesh.data.shape_keys.key_blocks[1:]:
            if not key.name.startswith("pose_"):
                key.value = keys.get(key.name, 0.0)
        bone = armature.pose.bones["jaw"]
        axis = bone.bone.matrix_local.to_3x3().inverted() @ Vector((1, 0, 0))
        bone.rotation_mode, bone.rotation_quaternion = "QUATERNION", Quaternion(axis, jaw)

def lamp(name, energy, size, place):
    light = bpy.data.lights.new(name, "AREA")
    light.energy, light.size = energy, size
    one = bpy.data.objects.new(name, light)
    one.location = place
    one.rotation_euler = (-Vector(place)).to_track_quat("-Z", "Y").to_euler()
    scene.collection.objects.link(one)

lamp("key", 22, 0.6, (-0.7, -1.1, 0.7))
lamp("fill", 11, 1.0, (0.9, -1.0, 0.2))
lamp("rim", 10, 0.5, (0.3, 0.9, 0.8))
world = scene.world = bpy.data.worlds.new("grey")
world.use_nodes = True
world.node_tree.nodes["Background"].inputs[0].default_value = (0.05, 0.055, 0.065, 1)
camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
camera.data.lens, camera.location = 85, (0, -1.75, -0.005)
camera.rotation_euler = (1.5708, 0, 0)
scene.collection.objects.link(camera)
scene.camera = camera
scene.render.engine = "CYCLES"
scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 24, False
scene.render.resolution_x, scene.render.resolution_y = 800, 400
scene.view_settings.view_transform = "Standard"
scene.render.filepath = output
bpy.ops.render.render(write_still=True)
"""


def head() -> bytes:
    """A GLB file of the person, with true codes and wrinkles and the colours of the photograph."""
    bundle = procedural_head()
    model, world = GeometryModel(bundle), World(bundle)
    someone = world.subject(seed=SEED, index=PERSON)
    limits = Limits(yaw=(0, 6), pitch=3, roll=2, scale=(6.4, 6.6), shift=0, occluders=False, lens=False)
    photograph = world.photograph(someone, world.shot(someone, image=PICTURE, limits=limits), size=768)
    picture = torch.from_numpy(photograph.image.transpose(2, 0, 1).copy())[None].float() / 255
    with torch.inference_mode():
        out = head_of(model, photograph.codes, torch.from_numpy(photograph.displacement)[None])
        on_uv = image_on_uv(model.atlas, out.projected, picture)
    return glb(rig_of(bundle), rigged_head(model, photograph.codes, out, "person", on_uv))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=STILL)
    target = parser.parse_args().file
    blender = shutil.which("blender")
    if blender is None:
        raise SystemExit("blender is not installed: apt-get install blender")
    with tempfile.TemporaryDirectory(prefix="deca-still-") as name:
        folder = Path(name)
        (folder / "head.glb").write_bytes(head())
        (folder / "scene.py").write_text(SCENE)
        packages = str(Path(np.__file__).parents[1])
        arguments = [str(folder / "head.glb"), str(DRIVERS), packages, str(folder / "still.png")]
        command = [blender, "--background", "--factory-startup", "--python-exit-code", "3", "--threads", "1"]
        subprocess.run([*command, "--python", str(folder / "scene.py"), "--", *arguments], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(folder / "still.png") as still:
            still.convert("RGB").save(target, "JPEG", quality=QUALITY, optimize=True)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
