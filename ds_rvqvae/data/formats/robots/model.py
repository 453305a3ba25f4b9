"""Robots from MJCF and URDF files: joints with their axes and limits, and how links are placed.

MuJoCo parses both (mujoco.readthedocs.io, "Modeling"): defaults, includes, units of angles and all ways to write an
orientation are its own. Meshes, actuators and the like are dropped first, so their files need not exist.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.data.formats.finding import check_regular
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.skeleton import matrices_of_quaternions, skeleton_from_json

if TYPE_CHECKING:
    from mujoco import MjModel, MjSpec

_LARGEST_FILE = 2**24
"""Bytes; a humanoid takes less than a hundred thousand."""
_DROPPED = (
    *("actuators", "sensors", "equalities", "tendons", "keys", "excludes", "pairs", "sites", "cameras", "lights"),
    *("skins", "flexes", "geoms", "meshes", "hfields", "materials", "textures", "plugins"),
)
"""Elements that say nothing about joints, in an order in which none refers to one that is gone already."""
_FREE, _BALL, _SLIDE = 0, 1, 2
"""MuJoCo's types of joints (mjtJoint); 3 is a hinge."""
_STILL = 1e-9


def robot_from_file(file: Path) -> dict[str, Any]:
    """Reads a robot.

    Returns:
        `joint_names`, `parents`, `offsets` (metres), `rotations` (quaternions w, x, y, z), `axes`, `slides` and
        `limits` (radians or metres, or null), one entry per node of a tree (`skeleton_from_json`). The first node is
        the base, with the name of its link. Each joint that turns or slides is a node with its own name, in the file's
        order. Links that no joint moves, or that a joint away from their origin moves, are nodes with their own names.

    Raises:
        ClipError: the file cannot be read, or is not one robot of hinges and slides.
        UserError: MuJoCo is not installed.
    """
    check_regular(file)
    if file.stat().st_size > _LARGEST_FILE:
        raise ClipError(f"larger than {_LARGEST_FILE >> 20} MiB, so not a robot's MJCF or URDF")
    try:
        import mujoco
    except ImportError:
        raise UserError(
            f"{file}: MJCF and URDF are read by the library mujoco, which is not installed: pip install "
            "'ds_rvqvae[robots]', or pip install mujoco"
        ) from None
    try:
        spec = mujoco.MjSpec.from_file(str(file))
        base_link = _base_link(file)
        _drop(spec)
        model = spec.compile()
    except (ValueError, RuntimeError) as error:
        raise ClipError(f"not MJCF or URDF: {' '.join(str(error).split())[:300]}") from None
    tree = _Tree(model, base_link)
    entries = tree.entries()
    skeleton_from_json(entries, file.stem)  # checks it
    return entries


def _drop(spec: "MjSpec") -> None:
    """Removes everything but bodies and joints, and lets bodies without mass pass."""
    for kind in _DROPPED:
        for element in list(getattr(spec, kind, ())):
            spec.delete(element)
    spec.compiler.fusestatic = False
    spec.compiler.discardvisual = False
    spec.compiler.boundmass, spec.compiler.boundinertia = 1e-3, 1e-6
    spec.compiler.balanceinertia = True


def _base_link(file: Path) -> str | None:
    """Returns the name of a URDF's first link, which MuJoCo makes a part of the world; None for MJCF."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, UnicodeError, LookupError):
        return None
    if root.tag != "robot":
        return None
    children = {child.get("link") for joint in root.iter("joint") if (child := joint.find("child")) is not None}
    names = [name for link in root.iter("link") if (name := link.get("name"))]
    return next((name for name in names if name not in children), None)


class _Tree:
    """The nodes of a robot, made body by body."""

    def __init__(self, model: "MjModel", base_link: str | None) -> None:
        self._model = model
        self._names: list[str] = []
        self._parents: list[int] = []
        self._offsets: list[NDArray[np.float64]] = []
        self._rotations: list[NDArray[np.float64]] = []
        self._axes: list[NDArray[np.float64]] = []
        self._slides: list[bool] = []
        self._limits: list[list[float] | None] = []
        self._node_of: dict[int, int] = {}
        """For each body, the node whose frame is the body's."""
        base = self._base(base_link)
        # The root's rotation in files is in the world, so that of the base at rest does not count.
        self._add(base_link or self._name_of_body(base), -1, model.body_pos[base], np.array([1.0, 0, 0, 0]))
        self._node_of[base] = 0
        for body in range(1, model.nbody):
            if body != base and int(model.body_parentid[body]) in self._node_of:
                self._add_body(body)
        if not any(axis.any() for axis in self._axes):
            raise ClipError("it has no joint that turns or slides")

    def entries(self) -> dict[str, Any]:
        return {
            "joint_names": self._names,
            "parents": self._parents,
            "offsets": np.array(self._offsets).tolist(),
            "rotations": np.array(self._rotations).tolist(),
            "axes": np.array(self._axes).tolist(),
            "slides": self._slides,
            "limits": self._limits,
        }

    def _base(self, base_link: str | None) -> int:
        """Returns the body that carries the robot: one that moves freely, else the world; raises ClipError."""
        model = self._model
        if base_link is not None and all(self._name_of_body(body) != base_link for body in range(1, model.nbody)):
            return 0
        tops = [body for body in range(1, model.nbody) if model.body_parentid[body] == 0 and self._moves(body)]
        free = [body for body in tops if any(model.jnt_type[joint] == _FREE for joint in self._joints(body))]
        found = free or tops
        if len(found) > 1:
            names = ", ".join(self._name_of_body(body) for body in found[:4])
            raise ClipError(f"it has {len(found)} robots ({names}); a file should hold one")
        return free[0] if free else tops[0] if tops and not model.body_jntnum[tops[0]] else 0

    def _moves(self, body: int) -> bool:
        """Returns whether a body or one below it has a joint."""
        model, below = self._model, {body}
        for other in range(body, model.nbody):
            if other in below or int(model.body_parentid[other]) in below:
                below.add(other)
                if model.body_jntnum[other]:
                    return True
        return False

    def _joints(self, body: int) -> Iterator[int]:
        first = int(self._model.body_jntadr[body])
        yield from range(first, first + int(self._model.body_jntnum[body]))

    def _name_of_body(self, body: int) -> str:
        return str(self._model.body(body).name) or f"link_{body}"

    def _add_body(self, body: int) -> None:
        """Adds the nodes of a body's joints, and one for the body if its frame is not that of its last joint."""
        model, name = self._model, self._name_of_body(body)
        node = self._node_of[int(model.body_parentid[body])]
        offset, rotation = model.body_pos[body].copy(), model.body_quat[body]
        joints = list(self._joints(body))
        if not joints:
            self._node_of[body] = self._add(name, node, offset, rotation)
            return
        before = np.zeros(3)
        for index, joint in enumerate(joints):
            own = str(model.joint(joint).name) or f"joint_{joint}"
            if model.jnt_type[joint] in (_FREE, _BALL):
                raise ClipError(f"joint {own} of {name} is free or a ball; only hinges and slides have one angle")
            if abs(model.qpos0[model.jnt_qposadr[joint]]) > _STILL:
                raise ClipError(f"joint {own} has a ref other than 0, which is not read; write the MJCF without it")
            at = model.jnt_pos[joint]
            way = offset + matrices_of_quaternions(rotation[None])[0] @ at if index == 0 else at - before
            node = self._add(own, node, way, rotation if index == 0 else np.array([1.0, 0, 0, 0]))
            self._axes[node] = model.jnt_axis[joint].copy()
            self._slides[node] = bool(model.jnt_type[joint] == _SLIDE)
            self._limits[node] = model.jnt_range[joint].tolist() if model.jnt_limited[joint] else None
            before = at
        if np.abs(before).max() > _STILL:
            node = self._add(name, node, -before, np.array([1.0, 0, 0, 0]))
        self._node_of[body] = node

    def _add(self, name: str, parent: int, offset: NDArray[np.float64], rotation: NDArray[np.float64]) -> int:
        taken, own, count = set(self._names), name, 1
        while own in taken:
            count += 1
            own = f"{name}_{count}"
        self._names.append(own)
        self._parents.append(parent)
        self._offsets.append(np.array(offset))
        self._rotations.append(np.array(rotation))
        self._axes.append(np.zeros(3))
        self._slides.append(False)
        self._limits.append(None)
        return len(self._names) - 1
