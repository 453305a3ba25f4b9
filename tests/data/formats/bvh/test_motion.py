"""Motion written as BVH, in the source's own hierarchy, is the same when it is read again."""

import numpy as np
import pytest

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.bvh.file import read_bvh
from ds_rvqvae.data.formats.bvh.reader import BvhReader
from ds_rvqvae.data.formats.bvh.writing import write_bvh
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Channels, take_channels
from tests.data.formats.bvh_files import JOINTS, write_bvh_motion


def read(file, config):
    return BvhReader(file, config).read(file.stem)


@pytest.mark.parametrize(
    "settings",
    [{}, {"fps": 15.0}, {"fps": 25.0}, {"up_axis": "z", "metres_per_unit": 0.02}],
    ids=["as it is", "decimated", "resampled", "z up"],
)
def test_what_is_read_is_written_and_read_again(tmp_path, settings):
    config = DataConfig(**settings)
    source = write_bvh_motion(tmp_path / "source.bvh", frames=61)
    clip = read(source, config)
    write_bvh(tmp_path / "again.bvh", clip.motion, clip.layout, source, config)
    again = read(tmp_path / "again.bvh", config)
    assert again.layout == clip.layout and [channels.name for channels in clip.layout[:-1]] == list(JOINTS)
    np.testing.assert_allclose(again.motion, clip.motion, atol=1e-6)
    header = (tmp_path / "again.bvh").read_bytes().partition(b"MOTION")[0]
    assert header == source.read_bytes().partition(b"MOTION")[0]
    written = read_bvh(tmp_path / "again.bvh")
    assert written.fps == pytest.approx(config.fps) and written.joints == read_bvh(source).joints


def test_only_what_the_layout_names_is_changed(tmp_path):
    source, other = (write_bvh_motion(tmp_path / f"{seed}.bvh", seed=seed) for seed in (0, 1))
    clips = [read(file, DataConfig()) for file in (source, other)]
    columns, layout = take_channels(clips[0].layout, ["LeftLeg", "translation"])
    write_bvh(tmp_path / "mixed.bvh", clips[1].motion[:, columns], layout, source, DataConfig())
    mixed = read(tmp_path / "mixed.bvh", DataConfig())
    rest = np.setdiff1d(np.arange(mixed.motion.shape[1]), columns)
    np.testing.assert_allclose(mixed.motion[:, columns], clips[1].motion[:, columns], atol=1e-6)
    np.testing.assert_allclose(mixed.motion[:, rest], clips[0].motion[:, rest], atol=1e-6)
    # The leg's own position channels are not in the layout.
    values = [read_bvh(file).values[:, 10:13] for file in (source, tmp_path / "mixed.bvh")]
    np.testing.assert_allclose(values[1], values[0], atol=1e-6)


def test_angles_have_no_jumps(tmp_path):
    source = write_bvh_motion(tmp_path / "source.bvh", frames=200)
    clip = read(source, DataConfig())
    turns = np.deg2rad(np.linspace(0, 900, 200))
    clip.motion[:, :6] = np.stack([np.cos(turns), -np.sin(turns), *(0 * turns,) * 4], axis=1)
    clip.motion[:, 3:6] = np.stack([np.sin(turns), np.cos(turns), 0 * turns], axis=1)
    write_bvh(tmp_path / "turning.bvh", clip.motion, clip.layout, source, DataConfig())
    assert np.abs(np.diff(read_bvh(tmp_path / "turning.bvh").values[:, 3])).max() < 5
    np.testing.assert_allclose(read(tmp_path / "turning.bvh", DataConfig()).motion, clip.motion, atol=1e-6)


def test_what_does_not_fit_the_source_is_refused(tmp_path):
    source = write_bvh_motion(tmp_path / "source.bvh")
    clip = read(source, DataConfig())
    with pytest.raises(ClipError, match="has 60 frames at 30 fps, but the motion has 59"):
        write_bvh(tmp_path / "out.bvh", clip.motion[1:], clip.layout, source, DataConfig())
    other = (Channels("RightArm", "rotation_6d", 0, 6),)
    with pytest.raises(ClipError, match=r"has no RightArm \(rotation_6d\)"):
        write_bvh(tmp_path / "out.bvh", clip.motion[:, :6], other, source, DataConfig())
    twice = source.read_text().replace(
        "CHANNELS 3 Yrotation Xrotation Zrotation", "CHANNELS 3 Yrotation Yrotation Zrotation"
    )
    source.write_text(twice)
    with pytest.raises(ClipError, match="LeftArm turns about one axis twice in a row"):
        write_bvh(tmp_path / "out.bvh", clip.motion, clip.layout, source, DataConfig())
    assert not (tmp_path / "out.bvh").exists()
