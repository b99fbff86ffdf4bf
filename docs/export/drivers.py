"""For Blender's text editor: open an exported head, select its mesh, run this. The jaw then moves its correctives.

FLAME bends the skin a little further than bones can where a joint turns. A GLB file holds that as shape keys named
pose_<joint>_<part>, with weights that are polynomials of the joint's rotation; this makes drivers out of them.
"""

import bpy


def in_gltf(bone):
    """The bone's quaternion in glTF's frame, as expressions of the driver's variables qw, qx, qy, qz."""
    rest = bone.matrix_local.to_3x3()  # from the bone's frame to the armature's, which has z up
    rows = {"x": rest[0], "y": rest[2], "z": -rest[1]}
    turned = {name: f"({row[0]:.9f}*qx+{row[1]:.9f}*qy+{row[2]:.9f}*qz)" for name, row in rows.items()}
    return {"w": "qw", **turned}


def add_drivers(mesh):
    armature = mesh.find_armature()
    for name, about in mesh.data["correctives"].to_dict().items():
        bone = armature.data.bones[about["joint"]]
        key = mesh.data.shape_keys.key_blocks[name]
        key.slider_min, key.slider_max = -1.0, 1.0
        driver = key.driver_add("value").driver
        for axis in "wxyz":
            variable = driver.variables.new()
            variable.name, variable.type = f"q{axis}", "TRANSFORMS"
            target = variable.targets[0]
            target.id, target.bone_target = armature, bone.name
            target.transform_type, target.transform_space = f"ROT_{axis.upper()}", "LOCAL_SPACE"
            target.rotation_mode = "QUATERNION"
        parts = in_gltf(bone)
        driver.expression = "".join(parts.get(letter, letter) for letter in about["weight"])


add_drivers(bpy.context.object)
