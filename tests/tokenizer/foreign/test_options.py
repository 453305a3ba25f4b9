"""Option files of MoMask, T2M-GPT and GestureLSM: where they are searched for, and which options are read."""

import json

import numpy as np
import pytest

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.foreign.formats import FORMATS
from ds_rvqvae.tokenizer.foreign.options import checkpoint_in, read_options, statistics_files


def _said(file, format, named=None):
    """Reads the options: values by key, and the names of the option files."""
    options = read_options(file, FORMATS[format], named)
    values = {key: [one.value for one in said] for key, said in options.said.items()}
    return values, [path.name for path in options.files]


def _touch(file, text=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_momasks_lines(tmp_path):
    file = _touch(tmp_path / "rvq" / "model" / "latest.tar")
    _touch(
        tmp_path / "rvq" / "opt.txt",
        "------------ Options -------------\ncheckpoints_dir: ./checkpoints\ndataset_name: kit\ndepth: 3\next: \n"
        "fps: None\nmu: 0.99\nshared_codebook: True\nvq_act: gelu\nvq_norm: None\n-------------- End -------------\n",
    )
    values = {"dataset": ["kit"], "depth": [3], "mu": [0.99], "shared_codebook": [True]}
    values |= {"activation": ["gelu"], "norm": ["none"]}
    assert _said(file, "momask") == (values, ["opt.txt"])
    # It is nobody else's.
    assert _said(file, "t2mgpt") == _said(file, "gesturelsm") == ({}, [])


def _log(*dumps):
    dumped = [json.dumps(dump, indent=4, sort_keys=True) for dump in dumps]
    return "".join(f"2023-01-20 10:00:00,1 INFO {dump}\n2023-01-20 10:00:01,1 INFO Train. {{0}} \n" for dump in dumped)


def test_the_log_of_t2m_gpt_and_gesturelsm(tmp_path):
    file = _touch(tmp_path / "net_last.pth")
    dump = {"vq_act": "silu", "vq_norm": "GN", "dataname": "t2m", "down_t": 2, "body_part": "hand", "resume_pth": None}
    _touch(tmp_path / "RUN.LOG", _log(dump, dump))
    values = {"activation": ["silu"], "norm": ["GN"], "down_t": [2]}
    assert _said(file, "t2mgpt") == (values | {"dataset": ["t2m"]}, ["RUN.LOG"])
    # GestureLSM's log has T2M-GPT's default there.
    assert _said(file, "gesturelsm") == (values | {"body_part": ["hands"]}, ["RUN.LOG"])
    _touch(tmp_path / "RUN.LOG", _log(dump, dump | {"vq_act": "relu"}))
    assert _said(file, "t2mgpt")[0]["activation"] == ["silu", "relu"]


def test_gesturelsms_yaml_files(tmp_path):
    file = _touch(tmp_path / "ckpt" / "net_300000_lower.pth")
    _touch(tmp_path / "configs" / "a.yaml", "vqvae_lower_path: ./ckpt/net_300000_lower.pth\ndata: {pose_fps: 30}\n")
    _touch(
        tmp_path / "configs_new" / "b.YML",
        "vqvae_lower_path: ckpt/net_300000_lower.pth\nvqvae_upper_path: ckpt/net_300000_upper.pth\nvq_norm: False\n"
        "model: {denoiser: {params: {activation: gelu}}}\nother: {pose_fps: '${data.pose_fps}'}\n",
    )
    _touch(tmp_path / "configs" / "else.yaml", "vqvae_lower_path: ./ckpt/other.pth\npose_fps: 15\n")
    _touch(tmp_path / "configs" / "broken.yaml", "a: [")
    assert _said(file, "gesturelsm") == (
        {"body_part": ["lower"], "fps": [30.0], "norm": ["none"]},
        ["a.yaml", "b.YML"],
    )
    _touch(tmp_path / "ckpt" / "own.yaml", "vq_act: relu\npose_fps: 25\n")
    values, files = _said(file, "gesturelsm")
    assert files == ["own.yaml", "a.yaml", "b.YML"] and values["fps"] == [25.0, 30.0]
    assert _said(file, "gesturelsm", tmp_path / "configs" / "else.yaml") == ({"fps": [15.0]}, ["else.yaml"])


def test_where_statistics_are(tmp_path):
    for name in ("mean", "std"):
        np.save(tmp_path / f"{name}.npy", np.ones(3))
    file = _touch(tmp_path / "net.pth")
    known = FORMATS["gesturelsm"]
    assert statistics_files(file, known, read_options(file, known)) == ""
    _touch(tmp_path / "a.yaml", "mean_pose_path: ./mean.npy\nstd_pose_path: ./std.npy\nmean_trans_path: ./no.npy\n")
    found = {"mean": [tmp_path / "mean.npy"], "std": [tmp_path / "std.npy"]}
    assert statistics_files(file, known, read_options(file, known)) == found
    _touch(tmp_path / "b.yaml", "std_pose_path: ./no.npy\n")
    assert statistics_files(file, known, read_options(file, known, tmp_path / "b.yaml")) == (
        "b.yaml (std_pose_path: ./no.npy) is missing"
    )
    assert statistics_files(file, known, read_options(file, known)) == (
        "a.yaml (std_pose_path: ./std.npy), b.yaml (std_pose_path: ./no.npy) differ"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth: three", "depth: three: is not a number"),
        ("depth: 2.5", "depth: 2.5: is not an integer"),
        ("depth: inf", "depth: inf: is not a number"),
        ("fps: 0", "fps: 0: is not above 0"),
        ("vq_act: tanh", "vq_act: tanh: is not one of relu, silu, gelu; give --activation"),
        ("vq_norm: Batch", "vq_norm: Batch: is not one of None, LN, GN; give --norm"),
        ("vq_norm: BN", r"vq_norm: BN: is batch norm \(BatchNorm\), which these nets do not have"),
        ("shared_codebook: maybe", "shared_codebook: maybe: is neither True nor False"),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(text, message, tmp_path):
    _touch(tmp_path / "opt.txt", text)
    with pytest.raises(UserError, match=f"opt.txt: {message}"):
        read_options(tmp_path / "net.tar", FORMATS["momask"])


def test_damaged_and_strange_files(tmp_path):
    file = _touch(tmp_path / "net.pth")
    noise = np.random.default_rng(0).bytes(2000)
    for name in ("opt.txt", "run.log"):
        (tmp_path / name).write_bytes(noise)
    assert _said(file, "momask") == _said(file, "t2mgpt") == ({}, [])
    (tmp_path / "run.log").write_text("{" * 100_000 + '{"' * 10_000)
    assert _said(file, "t2mgpt") == ({}, [])
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 40)]
    (tmp_path / "run.log").unlink()
    _touch(tmp_path / "many.yaml", "\n".join(["l0: &l0 {vq_act: silu}", *levels]))
    assert _said(file, "gesturelsm") == ({"activation": ["silu"]}, ["many.yaml"])
    for text in ("a: [", "!!python/object/apply:os.system ['true']", "\0", "a: 2020-99-99\n"):
        _touch(tmp_path / "many.yaml", text)
        with pytest.raises(UserError, match=r"many.yaml: not yaml: .*; name the option file with --options") as refusal:
            read_options(file, FORMATS["gesturelsm"])
        assert "\n" not in str(refusal.value)
    (tmp_path / "many.yaml").unlink()
    (tmp_path / "folder.yaml").mkdir()
    assert _said(file, "gesturelsm") == ({}, [])


def test_a_named_option_file_has_to_say_something(tmp_path):
    file = _touch(tmp_path / "net.pth")
    for name, text, message in (
        ("a.yaml", "a: 1", "--options .*a.yaml: has no options of a GestureLSM model"),
        ("a.json", "{}", "--options .*a.json: its suffix is not one of .txt, .log, .yaml, .yml"),
        ("no.yaml", None, "no.yaml: is not a file; name an option file"),
    ):
        if text is not None:
            _touch(tmp_path / name, text)
        with pytest.raises(UserError, match=message):
            read_options(file, FORMATS["gesturelsm"], tmp_path / name)


def test_the_checkpoint_in_a_folder(tmp_path):
    known = FORMATS["momask"]
    with pytest.raises(UserError, match=r"holds no model/net_best_fid.tar and no other .tar file; name the checkpoint"):
        checkpoint_in(tmp_path, known)
    latest = _touch(tmp_path / "model" / "latest.tar")
    assert checkpoint_in(tmp_path, known) == latest
    _touch(tmp_path / "model" / "E0001.tar")
    with pytest.raises(UserError, match=r"holds 2 checkpoints: model/E0001.tar, model/latest.tar; name the one to"):
        checkpoint_in(tmp_path, known)
    best = _touch(tmp_path / "model" / "net_best_fid.tar")
    assert checkpoint_in(tmp_path, known) == best
    assert checkpoint_in(latest, known) == latest
