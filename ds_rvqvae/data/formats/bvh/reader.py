"""The reader of BVH files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.base import FilesReader, files_below, unused_lists
from ds_rvqvae.data.formats.bvh.bodies import unique_names
from ds_rvqvae.data.formats.bvh.file import is_motion, read_bvh, read_joints
from ds_rvqvae.data.formats.bvh.kept import kept_columns, kept_joints, kept_skeleton, turning_tree
from ds_rvqvae.data.formats.bvh.motion import columns_of, figure_of, notes_on
from ds_rvqvae.data.formats.bvh.pieces import Piece, pieces_of, pieces_words
from ds_rvqvae.data.formats.bvh.several import Skeletons, common_joints
from ds_rvqvae.data.formats.bvh.skeletons import Z_UP_TO_Y_UP, Unit, check_one_unit, in_words, rest_skeleton
from ds_rvqvae.data.formats.npz import other_rate
from ds_rvqvae.data.formats.split_lists import SplitLists, find_lists, notes_of_unlisted
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError, Take

SUFFIX = ".bvh"


class BvhReader(FilesReader):
    """Reader of one BVH file, or of a folder with BVH files at any depth.

    The columns are the local rotation in 6D of each joint with rotation channels, in the file's order of joints, then
    the position in metres of the joint that carries the body (`Tree.carrier`). The rotation of this joint is relative
    to the world. If `rvqvae.data.joints` names joints, only they have columns (`ds_rvqvae.data.formats.bvh.kept`).

    A piece of a recording that a list names (`gp_00171#0#276`) is a clip of its own, as in SnapMoGen
    (`ds_rvqvae.data.formats.bvh.pieces`).
    """

    format = "BVH"
    key = "bvh"
    suffix = SUFFIX
    has_up_axis = True

    def __init__(self, path: Path, config: DataConfig) -> None:
        self._others: dict[str, Path] = {}
        """Files with another skeleton than `rvqvae.data.skeleton_of`."""
        self._pieces: dict[str, Piece] = {}
        self._count: Counter[str] = Counter()
        """The number of pieces of each recording."""
        self._read: tuple[Path, Take] | None = None
        """The last file, as several pieces of it are read one after the other."""
        super().__init__(path, config)
        if path.is_file():
            self._files = self._of_one_skeleton(self._files)
        if config.joints == "common":
            common = common_joints(path, self.clip_files().values(), config)
            if common is not None:
                self.config = config.with_values({"joints": common.names})
                self.notes += common.notes

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.suffix.lower() == SUFFIX if path.is_file() else bool(cls.files_of(path))

    @classmethod
    def files_of(cls, folder: Path) -> dict[str, Path]:
        return files_below(folder, (SUFFIX,))

    def _find(self) -> tuple[dict[str, Path], SplitLists]:
        files = self._of_one_skeleton(self.files_of(self.path))
        config = self.config
        versions = config.split_version, config.reading_version
        lists, notes = find_lists([self.path], self.path.parent, files, *versions, pieces=True)
        self.notes += unused_lists(lists.files, config) or notes
        pieces = pieces_of(lists.names(), files) if config.reading_version > 1 else []
        if pieces:
            self.notes += (pieces_words(pieces),)
            self._pieces = {piece.name: piece for piece in pieces}
            self._count = Counter(piece.recording for piece in pieces)
            whole = {name: file for name, file in files.items() if name not in self._count}
            files = whole | {piece.name: files[piece.recording] for piece in pieces}
        if config.split == "auto" and config.reading_version > 1:
            self.notes += tuple(notes_of_unlisted(lists, files))
        return files, lists

    def _of_one_skeleton(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """Returns the files with the skeleton of `rvqvae.data.skeleton_of`, and those that cannot be read.

        Raises:
            UserError: no file has it.
        """
        wanted = self.config.skeleton_of
        if wanted is None:
            return dict(files)
        found: dict[str, Path] = {}
        damaged: dict[str, Path] = {}
        for name, file in files.items():
            try:
                tree = turning_tree(read_joints(file))
            except ClipError:
                damaged[name] = file  # the packing reports it
            else:
                (found if tree == wanted else self._others)[name] = file
        if not found:
            first = next(iter(self._others), None)
            other = "" if first is None else f"; {first} has another one"
            raise UserError(f"{self.path}: no file has the skeleton of rvqvae.data.skeleton_of{other}")
        return dict(sorted((found | damaged).items()))

    def sources(self) -> list[Path]:
        return list(dict.fromkeys(super().sources()))

    def clip_names(self) -> list[str]:
        return sorted({*self._files, *self._lists.missing({*self._files, *self._others})})

    def file_of(self, name: str) -> str:
        piece = self._pieces.get(name)
        return super().file_of(name) + (f"#{piece.start}#{piece.stop}" if piece else "")

    def why_passed_over(self, file: Path) -> str:
        is_other = file in self._others.values()
        return "another skeleton than rvqvae.data.skeleton_of" if is_other else super().why_passed_over(file)

    def weight(self, name: str) -> int:
        whole = super().weight(name)
        piece = self._pieces.get(name)
        if piece is None:
            return whole
        return whole // self._count[piece.recording]

    def check(self, names: Sequence[str]) -> None:
        """Determines the skeletons and units of all files from their first frames.

        Single files whose unit is not known are left out.

        Raises:
            UserError: there are several skeletons; or the unit is not known for half of the files or more, or for all
                of several files with the same skeleton; or files with the same skeleton have different units.
        """
        if self.config.reading_version == 1:
            return
        skeletons = Skeletons(self.path, self.config)
        units: dict[tuple[float, str], list[float]] = {}
        unknown: dict[tuple[str, ...], list[str]] = {}
        known: dict[tuple[str, ...], dict[Path, Unit]] = {}
        for file in dict.fromkeys(self._files[name] for name in names if name in self._files):
            try:
                bvh = read_bvh(file, first_only=True)
                if not is_motion(bvh.values).any():
                    bvh = read_bvh(file)
            except ClipError:
                continue  # the packing reports it
            skeletons.add(file, bvh.joints)
            joints = tuple(joint.name for joint in bvh.joints)
            try:
                unit = figure_of(bvh, self.config).unit
            except ClipError as error:
                unknown.setdefault(joints, []).append(f"{file}: {error}")
            else:
                known.setdefault(joints, {})[file] = unit
                units.setdefault((unit.metres, unit.how), []).append(unit.height)
        skeletons.check_names()
        skeletons.refuse_several()
        self.notes += skeletons.rare_notes()
        count = sum(map(len, unknown.values()))
        total = count + sum(map(len, units.values()))
        whole = [files for joints, files in unknown.items() if len(files) > 1 and joints not in known]
        if whole or (count and 2 * count >= total):
            more = f" (and {count - 1} more of {total} files)" if count > 1 else ""
            raise UserError([*whole, *unknown.values()][0][0] + more)
        for of_skeleton in known.values():
            check_one_unit(of_skeleton)
        self.readings = tuple(_unit_words(*key, heights) for key, heights in units.items())

    def take_of(self, name: str, file: Path, split: str | None) -> Take:
        piece = self._pieces.get(name)
        if piece is None:
            return self._take(name, file, split)
        if self._read is None or self._read[0] != file:
            self._read = file, self._take(piece.recording, file, None)
        return _cut(self._read[1], piece, split)

    def _take(self, name: str, file: Path, split: str | None) -> Take:
        bvh = read_bvh(file)
        turn = Z_UP_TO_Y_UP if self.config.up_axis == "z" else None
        if not any(joint.axes for joint in bvh.joints):
            raise ClipError("no joint has rotation channels")
        figure = figure_of(bvh, self.config)
        kept = kept_joints(bvh.joints, figure.carrier, self.config)
        empty = np.asarray(~bvh.values.any(axis=1))
        notes = (*figure.notes, *notes_on(bvh, unique_names(bvh.joints), figure, empty))
        motion = kept_columns(columns_of(bvh, figure, turn), bvh.joints, kept)
        skeleton = rest_skeleton(bvh.joints, figure.unit.metres * figure.bones, figure.carrier, turn)
        if self.config.joints is not None or self.config.joint_names is not None:
            skeleton = kept_skeleton(skeleton, bvh.joints, kept)
        fps = self.config.source_fps or bvh.fps
        notes += other_rate(bvh.fps, self.config.source_fps)
        return Take(name, motion, fps, kept.layout, split, empty, skeleton=skeleton, notes=notes)


def _cut(take: Take, piece: Piece, split: str | None) -> Take:
    """Returns a piece of a recording; raises ClipError if the recording does not have these frames."""
    if not piece.start < piece.stop <= len(take.motion):
        raise ClipError(
            f"frames {piece.start} to {piece.stop} are listed, but {piece.recording} has {len(take.motion)}"
        )
    frames = slice(piece.start, piece.stop)
    assert take.empty is not None
    return Take(
        piece.name,
        take.motion[frames],
        take.fps,
        take.layout,
        split,
        take.empty[frames],
        skeleton=take.skeleton,
        notes=take.notes,
    )


def _unit_words(metres: float, how: str, heights: Sequence[float]) -> str:
    """Returns a unit as text for the report: its size, how it was found, and the heights of the bodies."""
    low, high = (f"{height:.2f}" for height in (min(heights), max(heights)))
    tall = f", {low} m" if low == high else f", {low} to {high} m"
    files = f"{len(heights):,} file{'' if len(heights) == 1 else 's'}"
    return f"{in_words(metres)}, {how}{tall if max(heights) else ''} ({files})"
