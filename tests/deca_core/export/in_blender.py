"""Runs inside Blender: opens a GLB file, sets joints and shape keys, writes what it finds as JSON.

blender --background --factory-startup --python in_blender.py -- head.glb request.json answer.json
request: {"packages": folder with numpy, "pose": {"jaw": [0.3, 0, 0]}, "keys": {"smile": 1},
 "drivers": a script to run before the pose is set}
Joints that are not named are put at rest, keys at 0.
"""

import json
import sys

glb, request, answer = sys.argv[sys.argv.index("--") + 1 :]
with open(request) as file:
    asked = json.load(file)
sys.path.append(asked["packages"])  # Debian's Blender comes without the numpy that its glTF importer needs

import bpy  # noqa: E402
import numpy as np  # noqa: E402
from mathutils import Quaternion, Vector  # noqa: E402

bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=glb)
[mesh] = [one for one in bpy.data.objects if one.type == "MESH" and one.vertex_groups]
[armature] = [one for one in bpy.data.objects if one.type == "ARMATURE"]


def evaluated():
    """Vertices in glTF's frame (y up), float64, with the normals of the file's split vertices undone."""
    graph = bpy.context.evaluated_depsgraph_get()
    shown = mesh.evaluated_get(graph)
    points = np.empty(len(shown.data.vertices) * 3)
    shown.data.vertices.foreach_get("co", points)
    matrix = np.array(shown.matrix_world)
    points = points.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1).tolist()


found = {
    "bones": [bone.name for bone in armature.data.bones],
    "keys": [key.name for key in mesh.data.shape_keys.key_blocks],
    "images": sorted(image.name for image in bpy.data.images if image.size[0]),
    "actions": {action.name: list(action.frame_range) for action in bpy.data.actions},
    "as_imported": evaluated(),
}
for action in bpy.data.actions:
    end = action.frame_range[1]
    bpy.context.scene.frame_set(int(end), subframe=end - int(end))
    found["last_frame"] = evaluated()
for one in (armature, mesh.data.shape_keys):
    if one.animation_data:
        one.animation_data_clear()

for bone in armature.pose.bones:
    bone.rotation_mode = "QUATERNION"
    bone.rotation_quaternion = (1, 0, 0, 0)
    bone.location = (0, 0, 0)
for key in mesh.data.shape_keys.key_blocks[1:]:
    key.value = asked["keys"].get(key.name, 0.0)
bpy.context.view_layer.update()
if "drivers" in asked:
    bpy.context.view_layer.objects.active = mesh
    with open(asked["drivers"]) as file:
        exec(compile(file.read(), asked["drivers"], "exec"))
for name, vector in asked["pose"].items():
    bone = armature.pose.bones[name]
    turn = Vector(vector)
    # The axis in Blender's frame (z up), then in the bone's own.
    axis = Vector((turn.x, -turn.z, turn.y))
    rest = bone.bone.matrix_local.to_3x3()
    bone.rotation_quaternion = Quaternion(rest.inverted() @ axis.normalized(), turn.length)
bpy.context.view_layer.update()
found["posed"] = evaluated()
with open(answer, "w") as file:
    json.dump(found, file)
