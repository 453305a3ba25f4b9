"""Feature matrices in folders like those of the published data sets."""

from pathlib import Path
from typing import NamedTuple

from tests.data.motion import write_lists, write_matrices, write_statistics


class Published(NamedTuple):
    """A data set of four clips: one in each split, and one in no split."""

    key: str
    """The reader's key."""
    width: int
    fps: float
    clips: str
    """The folder of the lists, relative to the data."""
    lists: str
    statistics: str
    names: tuple[str, str, str, str]
    """The clips in train, in val, in test, and in no list."""
    listed: str = "{}.txt"
    """The name of a list."""
    stem: str = ""
    """The prefix of the reader's names."""
    small: bool = False
    """Whether the names of the statistics are in lower case."""

    def write(self, folder: Path) -> Path:
        """Writes the complete data set and other files beside it; returns its folder."""
        write_matrices(folder / self.clips, self.names, self.width)
        lists = {self.listed.format(split)[:-4]: name for split, name in self.by_split.items()}
        write_lists(folder / self.lists, **lists)
        write_lists(folder / self.lists, all=" ".join(self.names), train_val=" ".join(self.names[:2]))
        write_statistics(folder / self.statistics, self.width, *(("mean.npy", "std.npy") if self.small else ()))
        (folder / "texts").mkdir()
        for name in self.names:
            text = folder / "texts" / f"{name.replace('/', '_')}.txt"
            text.write_text("a man walks#a/DET man/NOUN walk/VERB#0.0#0.0\n")
        return folder

    @property
    def by_split(self) -> dict[str, str]:
        return dict(zip(("train", "val", "test"), self.names, strict=False))


_NUMBERS = ("000000", "000001", "M000002", "000003")
_PATHS = ("MotionGV/folder0/a", "MotionGV/folder1/b", "Mirror_BABEL/c", "BABEL/d")
PUBLISHED: dict[str, Published] = {
    "HumanML3D": Published("humanml3d", 263, 20.0, "new_joint_vecs", ".", ".", _NUMBERS),
    "KIT": Published("humanml3d", 251, 12.5, "new_joint_vecs", ".", ".", ("00001", "00002", "M00003", "00004")),
    "HumanML3D-272": Published("humanml3d_272", 272, 30.0, "motion_data", "split", "mean_std", _NUMBERS),
    "BABEL-272": Published("humanml3d_272", 272, 30.0, "motion_data", "split", "t2m_babel_mean_std", _NUMBERS),
    "MotionMillion": Published(
        *("humanml3d_272", 272, 30.0, "motion_data/vector_272", "split/version1/tokenizer_96", "mean_std/vector_272"),
        names=_PATHS,
        small=True,
    ),
    "SnapMoGen": Published(
        *("features", 296, 30.0, "renamed_feats", "data_split_info", "meta_data"),
        names=("gp_00171", "gp_00172", "m_gp_00173", "st2_00001"),
        listed="{}_fnames.txt",
        stem="renamed_feats/",
        small=True,
    ),
}
