"""A made humanoid of 29 hinges and a slide as MJCF and as URDF, with rest rotations, fixed links and missing meshes."""

import numpy as np
from scipy.spatial.transform import Rotation

SIDES = ("left", "right")
LEG = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
WAIST = ("waist_yaw", "waist_roll", "waist_pitch")
ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")
CHAINS = {
    **{f"{side}_leg": ("pelvis", [f"{side}_{name}" for name in LEG]) for side in SIDES},
    "waist": ("pelvis", list(WAIST)),
    **{f"{side}_arm": ("waist_pitch_link", [f"{side}_{name}" for name in ARM]) for side in SIDES},
}
JOINTS = [name for _, names in CHAINS.values() for name in names]
"""The 29 hinges in the file's order; a slide, `head_lift`, comes after them."""
AXES = {"pitch": (0, 1, 0), "roll": (1, 0, 0), "yaw": (0, 0, 1), "knee": (0, 1, 0), "elbow": (0.6, 0.8, 0)}
_rng = np.random.default_rng(5)
PLACES = {name: _rng.normal(size=3) * 0.1 - [0, 0, 0.1] for name in JOINTS}
TURNS = {name: Rotation.from_euler("xyz", _rng.normal(size=3) * 0.3) for name in JOINTS}


def axis_of(name):
    return next(axis for key, axis in AXES.items() if key in name)


def numbers(values):
    return " ".join(f"{value:.9g}" for value in values)


def mjcf(joint_pos=(0, 0, 0)):
    """Returns the robot as MJCF: degrees, defaults, a floor, actuators and a mesh without its file."""

    def body(names, last=""):
        if not names:
            return last
        name, *more = names
        x, y, z, w = TURNS[name].as_quat()
        joint = f'<joint name="{name}_joint" axis="{numbers(axis_of(name))}" pos="{numbers(joint_pos)}" class="limb"/>'
        return (
            f'<body name="{name}_link" pos="{numbers(PLACES[name])}" quat="{numbers((w, x, y, z))}">{joint}'
            f'<geom type="mesh" mesh="hull"/>{body(more, last)}</body>'
        )

    head = (
        '<body name="mount" pos="0 0 0.1" euler="0 0 90"><geom size="0.01"/><body name="head" pos="0 0 0.2">'
        '<joint name="head_lift" type="slide" axis="0 0 1" range="0 0.1"/><geom size="0.05"/></body></body>'
    )
    arms = "".join(body(CHAINS[f"{side}_arm"][1]) for side in SIDES)
    legs = "".join(body(CHAINS[f"{side}_leg"][1]) for side in SIDES)
    waist = body(CHAINS["waist"][1], arms + head)
    return f"""<mujoco model="made">
  <compiler angle="degree" meshdir="meshes"/>
  <default><default class="limb"><joint range="-90 120" damping="1"/></default></default>
  <asset><mesh name="hull" file="hull.STL"/></asset>
  <worldbody><light pos="0 0 3"/><geom name="floor" type="plane" size="5 5 0.1"/>
    <body name="pelvis" pos="0 0 0.8" quat="0.70710678 0 0 0.70710678"><freejoint name="floating_base"/>
      <inertial pos="0 0 0" mass="3" diaginertia="1 1 1"/>
      {legs}{waist}
    </body>
  </worldbody>
  <actuator><motor joint="left_knee_joint"/></actuator>
  <sensor><framequat objtype="body" objname="pelvis"/></sensor>
</mujoco>"""


def urdf():
    """Returns the same robot as URDF: radians, a mesh in a package that is not there, inertials."""
    links, joints = ['<link name="pelvis"/>'], []

    def add(parent, child, name, kind, place, turn, axis):
        limit = '<limit lower="-1.5707963" upper="2.0943951" effort="1" velocity="1"/>' if kind != "fixed" else ""
        links.append(
            f'<link name="{child}"><inertial><mass value="1"/>'
            f'<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial><visual><geometry><mesh filename="package://made/hull.STL"/></geometry></visual></link>'
        )
        joints.append(
            f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
            f'<origin xyz="{numbers(place)}" rpy="{numbers(turn.as_euler("xyz"))}"/>'
            f'<axis xyz="{numbers(axis)}"/>{limit}</joint>'
        )

    for top, names in CHAINS.values():
        parent = top
        for name in names:
            add(parent, f"{name}_link", f"{name}_joint", "revolute", PLACES[name], TURNS[name], axis_of(name))
            parent = f"{name}_link"
    still = Rotation.identity()
    add(
        "waist_pitch_link",
        "mount",
        "mount_joint",
        "fixed",
        (0, 0, 0.1),
        Rotation.from_euler("z", 90, degrees=True),
        (1, 0, 0),
    )
    add("mount", "head", "head_lift", "prismatic", (0, 0, 0.2), still, (0, 0, 1))
    return f'<robot name="made">{"".join(links)}{"".join(joints)}</robot>'
