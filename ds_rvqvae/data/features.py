"""A folder of `.npy` feature matrices, one clip each, as HumanML3D keeps them.

Source: C. Guo et al., "Generating Diverse and Natural 3D Human Motions from Text", CVPR 2022.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from ds_rvqvae.data.clips import (
    ClipError,
    Reader,
    Take,
    file_size,
    load_npy,
    matrix,
    no_file,
    refuse_speakers,
    visible_files,
)
from ds_rvqvae.data.layout import feature_layout
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import DataConfig

CLIP_FOLDER = "new_joint_vecs"
STATISTICS = ("Mean.npy", "Std.npy")


class FeatureFolderReader(Reader):
    """`new_joint_vecs/*.npy` or just `*.npy`, each `[frames, features]`, taken to be at `rvqvae.data.fps`.

    `train.txt`, `val.txt` and `test.txt` list the clips of each split; a file that none lists counts as `additional`,
    or as held out where there is only `train.txt`. `Mean.npy` and `Std.npy` are the data's own statistics.
    """

    format = ".npy feature matrices"
    key = "features"

    def __init__(self, path: Path, config: DataConfig):
        super().__init__(path, config)
        refuse_speakers(config, path)
        self._folder = path / CLIP_FOLDER if (path / CLIP_FOLDER).is_dir() else path
        files = visible_files(self._folder, ".npy")
        self._files = {file.stem: file for file in files if file.name not in STATISTICS}
        self._lists = [file for split in ("train", "val", "test") if (file := self._beside(f"{split}.txt"))]
        self._split = self._read_lists()
        self._width: int | None = None

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_dir() and ((path / CLIP_FOLDER).is_dir() or bool(visible_files(path, ".npy")))

    def sources(self) -> list[Path]:
        statistics = [file for name in STATISTICS if (file := self._beside(name))]
        return [*self._files.values(), *self._lists, *statistics]

    def clip_names(self) -> list[str]:
        return sorted({*self._files, *self._split})

    def file_of(self, name: str) -> str:
        return self._files[name].name if name in self._files else f"{name}.npy"

    def take(self, name: str) -> Take:
        if name not in self._files:
            raise ClipError(f"{self._split[name]}.txt lists it, but {no_file(name)}")
        motion = matrix(load_npy(self._files[name]), "the matrix", self._usual_width())
        split = None
        if self._lists:
            unlisted = "val" if [file.name for file in self._lists] == ["train.txt"] else "additional"
            split = self._split.get(name, unlisted)
        return Take(name, motion, self.config.fps, feature_layout(motion.shape[1]), split)

    def weight(self, name: str) -> int:
        return file_size(self._files.get(name))

    def statistics(self) -> tuple[np.ndarray, np.ndarray] | None:
        files = [self._beside(name) for name in STATISTICS]
        if None in files:
            return None
        return read_statistics(files[0]), read_statistics(files[1], positive=True)

    def _beside(self, name: str) -> Path | None:
        return next((folder / name for folder in (self.path, self._folder) if (folder / name).is_file()), None)

    def _read_lists(self) -> dict[str, str]:
        split: dict[str, str] = {}
        for file in self._lists:
            try:
                names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{file}: cannot be read: {error}") from None
            for name in names:
                # Two answers make a split that is none of the known ones, which leaves the clip out by name.
                split[name] = file.stem if split.get(name, file.stem) == file.stem else f"{split[name]} and {file.stem}"
        return split

    def _usual_width(self) -> int | None:
        """The most common width of the first files, so that one odd file does not rule out all the others."""
        if self._width is None:
            widths: Counter[int] = Counter()
            for file in list(self._files.values())[:100]:
                try:
                    shape = np.load(file, mmap_mode="r", allow_pickle=False).shape
                except Exception:  # whatever is wrong with it is told when it is read
                    continue
                if len(shape) == 2:
                    widths[shape[1]] += 1
            self._width = widths.most_common(1)[0][0] if widths else None
        return self._width


def read_statistics(file: str | Path, positive: bool = False) -> np.ndarray:
    """A mean or std from a `.npy` file, float32 `[columns]`; raises UserError."""
    try:
        values = load_npy(Path(file))
    except ClipError as error:
        raise UserError(f"{file}: {error}") from None
    if values.dtype.kind not in "fiu" or values.ndim != 1:
        raise UserError(f"{file}: a .npy file with one number a column is wanted")
    if not np.isfinite(values).all() or (positive and (values < 0).any()):
        raise UserError(f"{file}: holds {'negative, ' if positive else ''}NaN or infinite values")
    return values.astype(np.float32)
