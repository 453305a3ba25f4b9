"""Settings of a profile that do not fit a run's columns: for example, the columns of a face cannot be mirrored.

If the user gave such a setting by a flag, it is an error. If it comes from the profile, this run leaves it out. For
several body parts, a flag applies to those that it fits, and it is an error if it fits none.
"""

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.augment import Augment, Mirror
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, Layout, check_losses, rotation_columns

BODY_PART = "rvqvae.data.body_part"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A key of a profile for which a run uses another value."""

    key: str
    value: Any
    """The run's value."""
    reason: str
    entries: tuple[str, ...] = ()
    """If the key is an object, the entries that are left out of it."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are left out: the key, or each of its entries."""
        return tuple(f"{self.key}.{entry}" for entry in self.entries) or (self.key,)


def unfitting(
    profile: Profile, layout: Layout, of_store: Layout, skeleton: Mapping[str, Any] | None, asked: Collection[str]
) -> tuple[LeftOut, ...]:
    """Returns the keys of a profile that do not fit the columns in use.

    Args:
        layout: of the columns in use.
        of_store: of all columns; it distinguishes a joint of another body part from one that does not exist.
        skeleton: `Store.skeleton`.
        asked: paths of the keys that the user has given; they are not checked here.
    """
    found = (*_of_augment(profile, layout, skeleton), *_of_losses(profile, layout, of_store, asked))
    return tuple(one for one in found if not is_asked(one.key, asked))


def _of_augment(profile: Profile, layout: Layout, skeleton: Mapping[str, Any] | None) -> Iterator[LeftOut]:
    augment = profile.rvqvae.data.augment
    if augment.mirror:
        key = "rvqvae.data.augment.mirror"
        try:
            Mirror(layout, skeleton)
        except UserError as error:
            yield LeftOut(key, 0.0, str(error).removeprefix(f"{key}: ").partition(";")[0])
    if augment.mix and len(layout) < 2:
        yield LeftOut("rvqvae.data.augment.mix", 0.0, f"all columns belong together, as {layout[0].name}")


def _of_losses(profile: Profile, layout: Layout, of_store: Layout, asked: Collection[str]) -> Iterator[LeftOut]:
    loss = profile.rvqvae.loss
    if loss.loss_rotation and not len(rotation_columns(layout)):
        yield LeftOut("rvqvae.loss.loss_rotation", 0.0, "no columns are known to be 6D rotations")
    key, weights = "rvqvae.loss.joint_weights", loss.joint_weights or {}
    elsewhere = [pattern for pattern in weights if not _fits(pattern, layout) and _fits(pattern, of_store)]
    elsewhere = [pattern for pattern in elsewhere if not is_asked(f"{key}.{pattern}", asked)]
    if elsewhere:
        kept = {pattern: weight for pattern, weight in weights.items() if pattern not in elsewhere}
        reason = f"no joint of this part is called {' or '.join(elsewhere)}"
        yield LeftOut(key, kept or None, reason, tuple(elsewhere))


def _fits(pattern: str, layout: Layout) -> bool:
    return any(fnmatch.fnmatchcase(channels.name, pattern) for channels in layout)


def is_asked(key: str, asked: Collection[str]) -> bool:
    """Returns whether a key, or an object that contains it, is among the paths that the user has given."""
    return any(key == path or key.startswith(f"{path}.") for path in asked)


def check_columns(profile: Profile, layout: Layout, skeleton: Mapping[str, Any] | None, part: str | None) -> None:
    """Raises UserError if a profile does not fit the columns in use; the message names their body part, `part`."""
    try:
        Augment(layout, profile.rvqvae.data.augment, 0, skeleton)
        check_losses(profile.rvqvae.loss, layout)
    except UserError as error:
        raise UserError(str(error) if part is None else f"--body_part {part}: {error}") from None


def check_body(left_out: Mapping[str, Sequence[LeftOut]], asked: Collection[str]) -> None:
    """Raises UserError if the user has given a key that fits none of several body parts.

    Args:
        left_out: by body part.
        asked: paths of the keys that the user has given.
    """
    by_path = {part: {path: one.reason for one in found for path in one.paths} for part, found in left_out.items()}
    for path in next(iter(by_path.values()), {}):
        if is_asked(path, asked) and all(path in reasons for reasons in by_path.values()):
            reasons = "; ".join(f"{part}, because {reasons[path]}" for part, reasons in by_path.items())
            raise UserError(f"--body_part {','.join(by_path)}: {path}: fits none of these parts: {reasons}")


def left_out_line(name: str, left_out: Sequence[LeftOut]) -> str:
    """Returns a line for the user: the keys that the run of a body part, or on a folder of motion, leaves out."""
    keys = "; ".join(f"{one.key}, because {one.reason}" for one in left_out)
    return f"{name}: left out of the profile: {keys}"


def check_part(part: str, path: str | Path, layout: Layout, has_body_parts: bool) -> None:
    """Raises UserError if a body part that was asked for selects nothing: else all columns would be used silently.

    Args:
        part: one of SMPL-X's body parts.
        path: of the motion.
        layout: of all columns.
        has_body_parts: whether SMPL-X's body parts can be selected from these columns.
    """
    if has_body_parts or tuple(channels.name for channels in layout) == BODY_PART_CHANNELS.get(part):
        return
    own = "" if len(layout) < 2 else ", or define parts of your own by rvqvae.data.body_parts"
    raise UserError(
        f"--body_part {part}: {path} has no body parts to select; only SMPL-X and SMPL-H motion has them (BEAT2, "
        f"AMASS). All columns of this motion are used: remove the flag{own}"
    )
