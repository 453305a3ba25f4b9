"""The number of columns of a profile's motion: by body part, or from the motion itself."""

import json

import numpy as np
import pytest

from ds_rvqvae import cli
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.columns import columns_in_use
from ds_rvqvae.data.store.prepare import prepare_store
from ds_rvqvae.errors import UserError
from tests.data.formats.bvh_files import write_bvh_motion
from tests.data.motion import write_packed

OWN = {"arm": ["LeftArm", "LeftHand"]}


@pytest.fixture
def bvh(tmp_path):
    write_bvh_motion(tmp_path / "data" / "b.bvh")
    return tmp_path / "data"


def test_columns_are_those_of_smplx_unless_motion_says_otherwise(bvh, tmp_path, demo_folder):
    assert columns_in_use(DataConfig()) == 78
    assert columns_in_use(DataConfig(body_part="hands"), str(demo_folder)) == 180
    assert columns_in_use(DataConfig(), str(bvh)) == 27
    own = DataConfig(body_part="arm", body_parts=OWN)
    assert columns_in_use(own, str(bvh)) == 12
    store = prepare_store(DataConfig(path=str(bvh)), tmp_path / "store")
    assert columns_in_use(own, str(store.folder)) == 12
    write_packed(tmp_path / "plain.npz")
    assert columns_in_use(DataConfig(), str(tmp_path / "plain.npz")) == 5


def test_the_first_file_that_can_be_read_counts(bvh):
    (bvh / "a.bvh").write_text("HIERARCHY")
    assert columns_in_use(DataConfig(), str(bvh)) == 27
    (bvh / "b.bvh").write_text("HIERARCHY")
    with pytest.raises(UserError, match=r"b\.bvh: "):
        columns_in_use(DataConfig(), str(bvh))


def test_own_parts_without_motion_are_not_known(tmp_path, bvh, capsys):
    with pytest.raises(
        UserError, match="the number of columns of arm is not known without motion; give --data_path or"
    ):
        columns_in_use(DataConfig(body_part="arm", body_parts=OWN))
    settings = [f"rvqvae.data.body_parts={json.dumps(OWN)}", "rvqvae.data.body_part=arm"]
    line = ["demo", *(word for setting in settings for word in ("--set", setting))]

    def said(*arguments):
        status = cli.main([*arguments])
        return status, *capsys.readouterr()

    assert said("plan", *line) == (2, "", said("plan", *line)[2])
    assert "--data_path or --in_features" in said("plan", *line)[2]
    status, out, _ = said("profile", "show", *line, "--json")
    assert status == 0 and json.loads(out)["in_features"] is None and json.loads(out)["parameter_count"] is None
    assert "trainable parameters: not known: " in said("profile", "show", *line)[1]
    for flags in (("--data_path", str(bvh)), ("--in_features", "12")):
        assert json.loads(said("profile", "show", *line, *flags, "--json")[1])["in_features"] == 12
        assert json.loads(said("plan", *line, *flags, "--json")[1])["in_features"] == 12
    np.save(tmp_path / "features.npy", np.zeros((40, 7), np.float32))
    status, _, error = said("profile", "show", *line, "--data_path", str(tmp_path / "features.npy"))
    assert status == 2 and "these data have no joint LeftArm" in error
