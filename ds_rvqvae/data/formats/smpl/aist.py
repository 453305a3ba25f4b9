"""AIST++: dances as SMPL motion, in its published folder, with `motions/` stored as npz.

Sources: R. Li et al., "AI Choreographer: Music Conditioned 3D Dance Generation with AIST++", ICCV 2021;
https://github.com/google/aistplusplus_api (`README.md`: `motions/`, `keypoints2d/`, `keypoints3d/`, `splits/`,
`cameras/`, `ignore_list.txt`; `aist_plusplus/loader.py`: `smpl_poses` [T, 72], `smpl_scaling` [1], `smpl_trans`
[T, 3], in pickles); https://github.com/google-research/mint (`tools/preprocessing.py`: `splits/crossmodal_train.txt`,
`…_val.txt`, `…_test.txt`; clips in `ignore_list.txt` are not used; FPS 60; `smpl_trans /= smpl_scaling`).
"""

from pathlib import Path

from ds_rvqvae.config.data import to_say
from ds_rvqvae.data.formats.base import npz_samples, unused_lists
from ds_rvqvae.data.formats.smpl.fields import AIST_POSES
from ds_rvqvae.data.formats.smpl.poses import SmplReader
from ds_rvqvae.data.formats.split_lists import LISTED, SplitLists, notes_of_unlisted
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_text

_CLIPS, _SPLITS, _IGNORED = "motions", "splits", "ignore_list.txt"
_KINDS = ("crossmodal", "pose")
"""Of lists: for models that hear the music, and for models of poses alone."""


class AistReader(SmplReader):
    """AIST++: the folder with `motions/`, or `motions/` itself; a single file, or other folders, `SmplReader` reads.

    The lists are `splits/crossmodal_*.txt` or `splits/pose_*.txt`; if both are there and say different things,
    `rvqvae.data.split_version` names one. Clips in `ignore_list.txt` are not read.
    """

    format = "AIST++ npz"
    key = "aist"
    certainty = 1

    @classmethod
    def matches(cls, path: Path) -> bool:
        if not path.is_dir() or _root(path) is None:
            return False
        return any(AIST_POSES in keys for keys in npz_samples(cls.files_of(path).values()))

    @classmethod
    def matched_before(cls, path: Path) -> bool:
        return False

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        root = _root(folder)
        files = super().files_of(folder if root is None else root / _CLIPS)
        ignored = set() if root is None else _ignored(root)
        return {name: file for name, file in files.items() if file.stem not in ignored}

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        root = _root(self.path) or self.path
        self._folder = root / _CLIPS
        files = self.files_of(self.path)
        found = {kind: of_kind for kind in _KINDS if (of_kind := _lists(root, kind))}
        if not found:
            return files, self._lists_of(files, [self._folder, root], None)
        kind = self._kind(found, root)
        lists = SplitLists(self._folder, root, files=found[kind])
        self.notes += unused_lists(lists.files, self.config) or tuple(notes_of_unlisted(lists, files))
        return files, lists

    def _kind(self, found: dict[str, dict[str, Path]], root: Path) -> str:
        """Returns which kind of lists is used; raises UserError if that is not clear."""
        asked, first = self.config.split_version, next(iter(found))
        if asked in found or self.config.split != "auto":
            return asked if asked in found else first
        if asked is None and len({str(_contents(lists)) for lists in found.values()}) == 1:
            return first
        words = "several kinds of" if asked is None else f"rvqvae.data.split_version {asked} is none of the"
        raise UserError(
            f"{root / _SPLITS}: {words} split lists: {', '.join(found)}; {to_say('split_version', 'NAME')} chooses"
        )

    def why_passed_over(self, file: Path) -> str:
        root = _root(self.path)
        if root is None or file.suffix.lower() != ".npz":
            return super().why_passed_over(file)
        return f"{_IGNORED} names it" if file.stem in _ignored(root) else f"not in {_CLIPS}/"


def _root(path: Path) -> Path | None:
    """Returns the data set's folder, if that or its `motions` is `path`; else None."""
    whole = path.absolute()
    return next(
        (root for root in (whole, whole.parent) if whole in (root, root / _CLIPS) and (root / _CLIPS).is_dir()), None
    )


def _lists(root: Path, kind: str) -> dict[str, Path]:
    """Returns the lists of a kind by their splits."""
    files = {split: root / _SPLITS / f"{kind}_{split}.txt" for split in LISTED}
    return {split: file for split, file in files.items() if file.is_file()}


def _contents(lists: dict[str, Path]) -> dict[str, list[str]]:
    return {split: sorted(_names(file)) for split, file in lists.items()}


def _ignored(root: Path) -> set[str]:
    """Returns the clips that the data set's own code leaves out; raises UserError if the list cannot be read."""
    file = root / _IGNORED
    return set(_names(file)) if file.is_file() else set()


def _names(file: Path) -> list[str]:
    try:
        return read_text(file).split()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
