"""Speakers and sets of clips, and how much of each is trained on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ds_rvqvae.errors import UserError

_SHOWN = 12
"""Groups that messages name."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Windows by group, and the share of samples that each group is to have."""

    names: list[str]
    """All groups, sorted; a group's index is its place here, whatever windows there are."""
    of_window: np.ndarray
    """int64 `[windows]`: the group of each window."""
    shares: np.ndarray
    """float64 `[groups]`, 1 together; 0 for a group that has no window or no weight."""

    @cached_property
    def reach(self) -> np.ndarray:
        """Up to where, between 0 and 1, a number drawn evenly means each window or one before it: float64 `[windows]`,
        in steps of a window's part in its group's share."""
        windows = np.bincount(self.of_window, minlength=len(self.names))
        return np.cumsum((self.shares / np.maximum(windows, 1))[self.of_window])

    def samples(self, count: int) -> np.ndarray:
        """How many of `count` samples are each group's, int64 `[groups]`: by largest remainder."""
        exact = self.shares * count
        samples = np.floor(exact).astype(np.int64)
        order = np.argsort(samples - exact, kind="stable")
        samples[order[: count - samples.sum()]] += 1
        return samples


def group_of(clip_name: str, by: Literal["speaker", "set"]) -> str:
    """The speaker or the set of a clip, by its name.

    A speaker is the folder that the clip lies in ("CMU/01/01_01" is of "01"), or in flat data what the name begins with
    ("2_scott_0_1_1" is of "2"). A set is the first folder ("CMU"), or "" in flat data. A clip's pieces are of its own.
    """
    *folders, name = re.sub(r"#\d+$", "", clip_name).split("/")
    if by == "set":
        return folders[0] if folders else ""
    return folders[-1] if folders else name.partition("_")[0]


def balanced(
    of_clip: Sequence[str], clip_of_window: np.ndarray, weights: Mapping[str, float], what: str = "group"
) -> Groups:
    """Shares by weight, 1 for a group that `weights` does not name, of the groups that have windows.

    Args:
        of_clip: each training clip's group.
        clip_of_window: int64 `[windows]`, the place in `of_clip` of each window's clip.
        what: a group's name in messages: speaker or set.

    Raises:
        UserError: a weight for a group that is not there, or none for those that are.
    """
    names, of_each = np.unique(np.asarray(of_clip, dtype=str), return_inverse=True)
    names = names.tolist()
    unknown = sorted(set(weights) - set(names))
    if unknown:
        there = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
        raise UserError(f"rvqvae.data.weights: no {what} {unknown[0]!r} in train; there: {there}")
    of_window = of_each[clip_of_window]
    weight = np.array([weights.get(name, 1.0) for name in names], np.float64)
    weight *= np.bincount(of_window, minlength=len(names)) > 0
    if not weight.any():
        raise UserError(f"rvqvae.data.weights: every {what} that has windows has weight 0")
    return Groups(names, of_window, weight / weight.sum())


def shares_text(groups: Groups) -> str:
    """`2 50.0% (12.5%), …`: a group's share of the samples, and beside it that of the windows."""
    own = np.bincount(groups.of_window, minlength=len(groups.names)) / len(groups.of_window)
    texts = [
        f"{name or 'no folder'} {share:.1%} ({part:.1%})"
        for name, share, part in zip(groups.names, groups.shares.tolist(), own.tolist(), strict=True)
    ]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
