"""The folder of AIST++: its clips, the lists of its splits, and the clips that its own code leaves out.

Sources: R. Li et al., "AI Choreographer: Music Conditioned 3D Dance Generation with AIST++", ICCV 2021;
https://github.com/google/aistplusplus_api (`README.md`: `motions/`, `keypoints2d/`, `keypoints3d/`, `splits/`,
`cameras/`, `ignore_list.txt`); https://github.com/google-research/mint (`tools/preprocessing.py`:
`splits/crossmodal_train.txt`, `…_val.txt`, `…_test.txt`; clips in `ignore_list.txt` are not used; FPS 60;
`smpl_trans /= smpl_scaling`). As published, `motions/` holds pickles, which have to be stored as npz.
"""

from pathlib import Path

from ds_rvqvae.config.data import DataConfig, to_say
from ds_rvqvae.data.formats.split_lists import LISTED, FoundLists, SplitLists, notes_of_unlisted
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import read_text

_CLIPS, _SPLITS, _IGNORED = "motions", "splits", "ignore_list.txt"
_KINDS = ("crossmodal", "pose")
"""Of lists: for models that hear the music, and for models of poses alone."""


def _root(path: Path) -> Path | None:
    """Returns the data set's folder, if that or its `motions` is `path`; else None."""
    whole = path.absolute()
    for root in (whole, whole.parent):
        is_there = (root / _SPLITS).is_dir() or (root / _IGNORED).is_file()
        if whole in (root, root / _CLIPS) and (root / _CLIPS).is_dir() and is_there:
            return root
    return None


def without_others(files: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Returns the clips among the files of a folder: in AIST++'s, those of `motions/` that are not to be ignored."""
    root = _root(folder)
    if root is None:
        return files
    ignored = _ignored(root)
    clips = root / _CLIPS
    return {name: file for name, file in files.items() if clips in file.absolute().parents and file.stem not in ignored}


def why_passed_over(file: Path, folder: Path) -> str | None:
    """Returns why a file of AIST++'s folder is not a clip; None for other folders and other files."""
    root = _root(folder) if file.suffix.lower() == ".npz" else None
    if root is None:
        return None
    return f"{_IGNORED} names it" if file.stem in _ignored(root) else f"not in {_CLIPS}/"


def find_lists(path: Path, files: dict[str, Path], config: DataConfig) -> FoundLists | None:
    """Finds the lists of AIST++'s splits; returns None for a folder without them.

    Raises:
        UserError: there are several kinds of lists and `rvqvae.data.split_version` names none of them.
    """
    root = _root(path)
    if root is None:
        return None
    found = {}
    for kind in _KINDS:
        lists = {split: root / _SPLITS / f"{kind}_{split}.txt" for split in LISTED}
        lists = {split: file for split, file in lists.items() if file.is_file()}
        if lists:
            found[kind] = lists
    if not found:
        return None
    asked = config.split_version or (next(iter(found)) if len(found) == 1 else "")
    if asked not in found and config.split == "auto":
        words = f"rvqvae.data.split_version {asked} is none of the" if asked else "several kinds of"
        raise UserError(
            f"{root / _SPLITS}: {words} split lists: {', '.join(found)}; {to_say('split_version', 'NAME')} chooses"
        )
    taken = SplitLists(path, root, files=found.get(asked, next(iter(found.values()))))
    return FoundLists(taken, tuple(notes_of_unlisted(taken, files)))


def _ignored(root: Path) -> set[str]:
    file = root / _IGNORED
    if not file.is_file():
        return set()
    try:
        return set(read_text(file).split())
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
