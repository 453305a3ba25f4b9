"""The keys under which npz files hold SMPL's, SMPL-H's and SMPL-X's rotations, and the forms of rotations.

Sources of the keys: https://github.com/vchoutas/smplx (`smplx/body_models.py`: `global_orient` [T, 3], `body_pose`
[T, 69] or [T, 63], `left_hand_pose` and `right_hand_pose` [T, 45], or PCA components if `use_pca` is set, `jaw_pose`,
`leye_pose`, `reye_pose` [T, 3], `transl`; `smplx/joint_names.py`: the order of the joints);
https://github.com/nghorbani/amass and https://github.com/nghorbani/human_body_prior (`poses`, `trans`; `root_orient`,
`pose_body`, `pose_hand`: the left hand, then the right, `pose_jaw`, `pose_eye`);
https://github.com/google/aistplusplus_api (`aist_plusplus/loader.py`: `smpl_poses` [T, 72], `smpl_trans`,
`smpl_scaling` [1]).

Each key has a known number of joints, so its width says the form: 3 columns per joint are an axis times an angle in
radians, 9 are a rotation matrix, row by row, and 6 are two rows or two columns of one.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import SMPL_JOINTS, SMPLH_JOINTS, SMPLX_JOINTS

POSES, TRANS, EXPRESSIONS = "poses", "trans", "expressions"
AIST_POSES, AIST_TRANS, AIST_SCALING = "smpl_poses", "smpl_trans", "smpl_scaling"
USE_PCA = "use_pca"
TRANS_KEYS = (TRANS, "transl")
Form = Literal["axis_angle", "matrix", "rows_6d", "columns_6d"]
FORM_WORDS: dict[Form, str] = {
    "axis_angle": "axis times angle",
    "matrix": "rotation matrices",
    "rows_6d": "the first two rows of rotation matrices, one after the other, as pytorch3d writes them (assumed)",
    "columns_6d": "the first two columns of rotation matrices, side by side (3 x 2, row by row)",
}
_WIDTHS: dict[int, Form] = {3: "axis_angle", 6: "rows_6d", 9: "matrix"}
_BODY, _HAND = SMPLX_JOINTS[:22], 15
_WHOLE = {
    55: (SMPLX_JOINTS, "SMPL-X"),
    52: (SMPLH_JOINTS, "SMPL-H"),
    24: (SMPL_JOINTS, "SMPL"),
    22: (_BODY, "the body alone"),
}
"""The joints of `poses` by their number."""
_ROOT = ("global_orient", "root_orient")
_BODIES = ("body_pose", "pose_body")
_HANDS = ("left_hand_pose", "right_hand_pose", "pose_hand")
_SPLIT: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(_ROOT, (SMPLX_JOINTS[:1],)),
    **dict.fromkeys(_BODIES, (_BODY[1:], SMPL_JOINTS[1:])),
    **dict.fromkeys(("jaw_pose", "pose_jaw"), (SMPLX_JOINTS[22:23],)),
    "leye_pose": (SMPLX_JOINTS[23:24],),
    "reye_pose": (SMPLX_JOINTS[24:25],),
    "pose_eye": (SMPLX_JOINTS[23:25],),
    "left_hand_pose": (SMPLX_JOINTS[25:40],),
    "right_hand_pose": (SMPLX_JOINTS[40:],),
    "pose_hand": (SMPLX_JOINTS[25:],),
}
"""The joints of each key of split files; a body has 21 joints beside the root, or 23 with SMPL's hands."""
MOTION_KEYS = (POSES, AIST_POSES, *_SPLIT, *TRANS_KEYS, AIST_TRANS, AIST_SCALING)
_TOLERANCE = 1e-2
"""How far rotation matrices may be from orthonormal: float16 has less than a tenth of it."""
_NAMED = "165 (SMPL-X, 55 joints), 156 (SMPL-H, 52), 72 (SMPL, 24) or 66 (the body, 22)"


class Field(NamedTuple):
    """The rotations of some adjacent joints under one key."""

    key: str
    first: int
    """Index of its first joint in `Fields.joints`."""
    joints: int
    form: Form


class Fields(NamedTuple):
    """Where a file has its motion, and in which form."""

    joints: tuple[str, ...]
    rotations: tuple[Field, ...]
    """They cover each joint once."""
    trans: str
    scaling: float = 1.0
    """The translation in the file is this many times that in metres."""
    copies: tuple[Field, ...] = ()
    """Other keys that hold the rotations of the same joints again."""
    expressions: str | None = None


def is_motion(keys: Collection[str]) -> bool:
    """Returns whether a file with these keys has rotations of a body."""
    return not {POSES, AIST_POSES}.isdisjoint(keys) or is_split(keys)


def is_split(keys: Collection[str]) -> bool:
    """Returns whether a file with these keys has the root's and the body's rotations under keys of their own."""
    return not set(_ROOT).isdisjoint(keys) and not set(_BODIES).isdisjoint(keys)


def find_fields(arrays: Mapping[str, NDArray[Any]]) -> Fields:
    """Finds the rotations and the translation in a file's arrays; raises ClipError if they are not clear."""
    if USE_PCA in arrays and arrays[USE_PCA].any() and not set(_HANDS).isdisjoint(arrays):
        raise ClipError(_pca(f"{USE_PCA} is set"))
    trans, scaling = _translation(arrays)
    numbers_of(arrays[trans], trans, (3,))
    whole = next((key for key in (POSES, AIST_POSES) if key in arrays), None)
    if whole is None:
        joints, rotations = _split_fields(arrays)
        fields = Fields(joints, rotations, trans, scaling)
    else:
        count, form = _form(arrays[whole], whole, _WHOLE)
        joints = _WHOLE[count][0]
        field = Field(whole, 0, count, form)
        fields = Fields(joints, (field,), trans, scaling, _copies(arrays, joints))
    _check_frames(arrays, (*(field.key for field in fields.rotations), trans))
    if all(field.form == "axis_angle" for field in fields.rotations):
        return fields
    empty = empty_frames(arrays, fields)
    return fields._replace(rotations=tuple(_with_order(field, arrays, empty) for field in fields.rotations))


def empty_frames(arrays: Mapping[str, NDArray[Any]], fields: Fields) -> NDArray[np.bool_]:
    """Returns for each frame whether every number of the rotations and the translation is zero, bool `[frames]`."""
    keys = [
        *(field.key for field in fields.rotations),
        fields.trans,
        *([fields.expressions] if fields.expressions else []),
    ]
    some = [arrays[key].reshape(len(arrays[key]), -1).any(axis=1) for key in keys]
    return np.asarray(~np.logical_or.reduce(some))


def _translation(arrays: Mapping[str, NDArray[Any]]) -> tuple[str, float]:
    """Returns the key of the translation, and how many times metres it is; raises ClipError."""
    if AIST_POSES in arrays and POSES not in arrays:
        if AIST_TRANS not in arrays:
            raise ClipError(f"no key {AIST_TRANS}, which files with {AIST_POSES} have")
        if AIST_SCALING not in arrays:
            raise ClipError(f"no key {AIST_SCALING}, which {AIST_TRANS} must be divided by")
        values = arrays[AIST_SCALING]
        if values.dtype.kind not in "fiu" or values.size != 1 or not 1e-6 < float(values.reshape(-1)[0]) < 1e6:
            raise ClipError(f"{AIST_SCALING} is {str(values)[:40]}, not one number above 0")
        return AIST_TRANS, float(values.reshape(-1)[0])
    there = [key for key in TRANS_KEYS if key in arrays]
    if not there:
        raise ClipError(f"no key {TRANS} or {TRANS_KEYS[1]}: the translation of the root is missing")
    first, *others = there
    if others and not np.array_equal(arrays[first], arrays[others[0]], equal_nan=arrays[first].dtype.kind == "f"):
        raise ClipError(f"{first} and {others[0]} are both there, and differ; leave one out")
    return first, 1.0


def _split_fields(arrays: Mapping[str, NDArray[Any]]) -> tuple[tuple[str, ...], tuple[Field, ...]]:
    """Returns all joints of a split file, in SMPL's order, and its fields; raises ClipError."""
    of_key = _joints_of_keys(arrays)
    for names in (_ROOT, _BODIES):
        if not any(key in of_key for key in names):
            raise ClipError(f"no key {' or '.join(names)}")
    every = [joint for joints, _ in of_key.values() for joint in joints]
    twice = next((joint for joint in every if every.count(joint) > 1), None)
    if twice is not None:
        raise ClipError(f"{' and '.join(key for key, (own, _) in of_key.items() if twice in own)} both hold {twice}")
    others = [key for key in of_key if key not in (*_ROOT, *_BODIES)]
    if "left_hand" in every and others:
        raise ClipError(f"the body has SMPL's 23 joints with one per hand, and {others[0]} is of SMPL-X or SMPL-H")
    order = (*SMPLX_JOINTS, *SMPL_JOINTS[22:])
    joints = tuple(sorted(every, key=order.index))
    found = sorted((joints.index(own[0]), key, len(own), form) for key, (own, form) in of_key.items())
    return joints, tuple(Field(key, first, count, form) for first, key, count, form in found)


def _joints_of_keys(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[tuple[str, ...], Form]]:
    found = {}
    for key, choices in _SPLIT.items():
        if key in arrays:
            by_count = {len(joints): joints for joints in choices}
            count, form = _form(arrays[key], key, by_count)
            found[key] = (by_count[count], form)
    return found


def _copies(arrays: Mapping[str, NDArray[Any]], joints: tuple[str, ...]) -> tuple[Field, ...]:
    """Returns the split keys beside `poses` that hold some of its joints; keys of another shape are left alone."""
    found = []
    for key, choices in _SPLIT.items():
        for own in choices if key in arrays else ():
            try:
                count, form = _form(arrays[key], key, (len(own),))
            except ClipError:
                continue
            if set(own) <= set(joints):
                found.append(Field(key, joints.index(own[0]), count, form))
    return tuple(found)


def _form(values: NDArray[Any], key: str, counts: Iterable[int]) -> tuple[int, Form]:
    """Returns the number of joints, of those possible, and the form of an array's rotations; raises ClipError."""
    for count in counts:
        for width, form in _WIDTHS.items():
            shapes = [(width * count,), (count, width)]
            if width == 9:
                shapes += [(count, 3, 3)] + ([(3, 3)] if count == 1 else [])
            if values.shape[1:] in shapes:
                return count, form
    if key in _HANDS and values.ndim == 2 and values.shape[1] < 3 * min(counts):
        raise ClipError(_pca(f"{key} has {values.shape[1]} columns"))
    wanted = _NAMED if key == POSES else " or ".join(str(3 * count) for count in counts)
    raise ClipError(f"{key} has shape {list(values.shape)}, not [frames, {wanted}], nor matrices or 6D of these joints")


def _pca(what: str) -> str:
    return (
        f"{what}: the hands are PCA components, which only the licensed model turns into rotations; "
        "store 45 columns of axis times angle per hand (use_pca=False)"
    )


def numbers_of(values: NDArray[Any], key: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Returns an array unchanged if it holds numbers of shape `[frames, *shape]`; else raises ClipError."""
    if values.dtype.kind not in "fiu":
        raise ClipError(f"{key} holds {str(values.dtype)[:40]}, not numbers")
    if shape is not None and values.shape[1:] != shape:
        raise ClipError(f"{key} has shape {list(values.shape)}, not [frames, {', '.join(map(str, shape))}]")
    if not values.size:
        raise ClipError(f"{key} is empty")
    return values


def _check_frames(arrays: Mapping[str, NDArray[Any]], keys: tuple[str, ...]) -> None:
    for key in keys:
        numbers_of(arrays[key], key)
    counts = [len(arrays[key]) for key in keys]
    if len(set(counts)) > 1:
        names = f"{', '.join(keys[:-1])} and {keys[-1]}"
        raise ClipError(f"{names} have {', '.join(map(str, counts[:-1]))} and {counts[-1]} frames; they must be equal")


def _with_order(field: Field, arrays: Mapping[str, NDArray[Any]], empty: NDArray[np.bool_]) -> Field:
    """Checks that matrices and 6D are rotations, and finds the order of 6D; raises ClipError.

    `empty` frames, and those with NaN or infinite values, are left to the rules.
    """
    if field.form == "axis_angle":
        return field
    values = arrays[field.key].reshape(len(arrays[field.key]), field.joints, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(values).all(axis=(1, 2)) & ~empty
        values = values[good].astype(np.float64)
        if not len(values):
            return field
        if field.form == "matrix":
            matrices = values.reshape(*values.shape[:2], 3, 3)
            _refuse(field, good, _off_rotation(matrices), "matrices that are not rotations")
            return field
        rows = _off_pair(values[..., :3], values[..., 3:])
        columns = _off_pair(values[..., 0::2], values[..., 1::2])
    fits = [float(off.max()) <= _TOLERANCE for off in (rows, columns)]
    if all(fits):
        raise ClipError(
            f"{field.key}: its 6D rotations can be two rows or two columns of the matrices; store 3 columns of axis "
            "times angle per joint"
        )
    if not any(fits):
        _refuse(field, good, np.minimum(rows, columns), "6D that are neither rows nor columns of rotation matrices")
        raise ClipError(f"{field.key}: its 6D rotations are rows in some frames and columns in others")
    return field._replace(form="rows_6d" if fits[0] else "columns_6d")


def _refuse(field: Field, good: NDArray[np.bool_], off: NDArray[np.float64], what: str) -> None:
    bad = np.argwhere(~(off <= _TOLERANCE))
    if len(bad):
        frame, joint = int(np.flatnonzero(good)[bad[0][0]]), int(bad[0][1])
        raise ClipError(f"{field.key} has {what}: joint {joint} in frame {frame}")


def _off_rotation(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far `[frames, joints, 3, 3]` are from rotations, `[frames, joints]`; reflections are far."""
    first, second, third = matrices[..., 0, :], matrices[..., 1, :], matrices[..., 2, :]
    off = _off_pair(first, second)
    x, y, z = np.moveaxis(first, -1, 0)
    a, b, c = np.moveaxis(second, -1, 0)
    for axis, product in enumerate((y * c - z * b, z * a - x * c, x * b - y * a)):
        # The third row of a rotation is the cross product of the others.
        np.maximum(off, np.abs(third[..., axis] - product), out=off)
    return off


def _off_pair(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far pairs of vectors `[frames, joints, 3]` are from orthonormal, `[frames, joints]`."""
    x, y, z = np.moveaxis(one, -1, 0)
    a, b, c = np.moveaxis(two, -1, 0)
    off: NDArray[np.float64] = np.abs(x * x + y * y + z * z - 1)
    for dot in (a * a + b * b + c * c - 1, x * a + y * b + z * c):
        np.maximum(off, np.abs(dot), out=off)
    return off
