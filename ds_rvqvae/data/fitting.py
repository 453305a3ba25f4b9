"""Settings of a profile that a run's columns cannot have: a face has no left and right to mirror.

What the user has asked for by a flag is refused then. What merely stands in the profile is left out of this run.
"""

import fnmatch
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.config.profile import Profile
from ds_rvqvae.data.augment import Mirror
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import BODY_PART_CHANNELS, Layout, rotation_columns

BODY_PART = "rvqvae.data.body_part"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A key of a profile that a run has another value of."""

    key: str
    value: Any
    """The run's."""
    reason: str


def unfitting(
    profile: Profile, layout: Layout, of_store: Layout, skeleton: Mapping[str, Any] | None, asked: Collection[str]
) -> tuple[LeftOut, ...]:
    """What of a profile the columns in use cannot have.

    Args:
        layout: of the columns in use.
        of_store: of all columns, which tells a joint of another part from one that is not there at all.
        skeleton: `Store.skeleton`.
        asked: keys that the user has given, by their paths; they are not looked at.
    """
    found = (*_of_augment(profile, layout, skeleton), *_of_losses(profile, layout, of_store))
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
        yield LeftOut("rvqvae.data.augment.mix", 0.0, f"all columns are one part, {layout[0].name}")


def _of_losses(profile: Profile, layout: Layout, of_store: Layout) -> Iterator[LeftOut]:
    loss = profile.rvqvae.loss
    if loss.loss_rotation and not len(rotation_columns(layout)):
        yield LeftOut("rvqvae.loss.loss_rotation", 0.0, "no columns are known to be 6D rotations")
    weights = loss.joint_weights or {}
    elsewhere = [pattern for pattern in weights if not _fits(pattern, layout) and _fits(pattern, of_store)]
    if elsewhere:
        kept = {pattern: weight for pattern, weight in weights.items() if pattern not in elsewhere}
        yield LeftOut("rvqvae.loss.joint_weights", kept or None, f"{', '.join(elsewhere)}: no joint of this part")


def _fits(pattern: str, layout: Layout) -> bool:
    return any(fnmatch.fnmatchcase(channels.name, pattern) for channels in layout)


def is_asked(key: str, asked: Collection[str]) -> bool:
    """Whether a key, or an object that it is in, is among the paths that the user has given."""
    return any(key == path or key.startswith(f"{path}.") for path in asked)


def left_out_line(name: str, left_out: Sequence[LeftOut]) -> str:
    """For people: what the run of a part, or on a folder of motion, does without."""
    them = "it" if len(left_out) == 1 else "them"
    keys = "; ".join(f"{one.key} ({one.reason})" for one in left_out)
    return f"{name}: left out of the profile, as these columns cannot have {them}: {keys}"


def check_part(config: DataConfig, layout: Layout, has_body_parts: bool) -> None:
    """Raises UserError where a body part that was asked for selects nothing: all columns would be used in silence.

    Args:
        layout: of all columns.
        has_body_parts: whether SMPL-X's parts select of them.
    """
    part = config.body_part
    if has_body_parts or part in (config.body_parts or ()):
        return
    if tuple(channels.name for channels in layout) == BODY_PART_CHANNELS.get(part):
        return
    raise UserError(f"{to_say('body_part', part)}: {no_parts(str(config.path), layout)}")


def no_parts(path: str, layout: Iterable[Any]) -> str:
    """Why no body part can be selected of motion."""
    own = "" if len(list(layout)) < 2 else ", or define parts of your own by --body_parts"
    return (
        f"{path} has no body parts to select, which SMPL-X and SMPL-H motion (BEAT2, AMASS) has; all its columns are "
        f"trained on: leave it out{own}"
    )
