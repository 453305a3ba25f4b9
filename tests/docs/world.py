"""A folder in which the commands of the pages find what they name: motion, runs, tokenizers, stores, checkpoints."""

import shutil
from pathlib import Path

import numpy as np
import torch

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.data.demo import write_demo_motion
from tests.data.formats.bvh_files import Part, body, write_body
from tests.data.formats.published import PUBLISHED
from tests.data.formats.robots.made import mjcf
from tests.data.formats.robots.published import walk, write_bones, write_lafan1
from tests.data.motion import write_matrices, write_packed
from tests.docs.pages import ROOT
from tests.ranks import finish, start_ranks
from tests.tokenizer.foreign import checkpoints
from tests.tokenizer.scores.published.weights import matching_checkpoint
from tests.train.small import SMALL

BEAT2 = "data/BEAT2/beat_english_v2.0.0"
CLIP = "2_scott_0_1_1"
BONES = {"UpLeg": "UpperLeg", "Leg": "LowerLeg"}
"""Bones of the leg, and their names in the other studio's files."""
PARTS = ("upper", "hands", "lower_trans")
RUNS = ("cmu", "beat2", *(f"{name}-beat_english_v2.0.0-upper" for name in ("best", "baseline", "wide", "demo")))
"""All of them are runs of the upper body."""

SETTINGS = [*SMALL, "--batch_size=4", "--total_iter=2", "--mixed_precision=no"]
"""Of the world's runs."""


def write_motion(world: Path) -> None:
    """Motion in the folders that the pages name, `/data` being `data` in the world."""
    beat2 = write_demo_motion(world / BEAT2, clips=8, frames=800)
    clips = beat2 / "smplxflame_30"
    for file in (clips / f"{CLIP}.npz", world / f"{CLIP}.npz"):
        shutil.copy(clips / "2_wave_0_1_2.npz", file)
    with (beat2 / "train_test_split.csv").open("a") as rows:
        rows.write(f"{CLIP},test\n")
    for name in ("bvh", "cmu"):
        for index in range(4):
            write_body(world / "data" / name / "walk" / f"{index:02d}.bvh", body(), frames=200, seed=index)
    theirs = {f"{side}{bone}": f"{own}_{side[0]}" for side in ("Left", "Right") for bone, own in BONES.items()}
    for index in range(4):
        parts = body() if index % 2 else [_renamed(part, theirs) for part in body()]
        write_body(world / "data" / "two_studios" / f"{index:02d}.bvh", parts, frames=200, seed=index)
        places = np.zeros((200, 4, 3)) + np.array([[0, 0.9, 0], [0, 1.2, 0], [0, 1.6, 0], [0, 0, 0.1]])
        places[:, :, 0] += 0.01 * np.arange(200)[:, None]
        (world / "data" / "positions").mkdir(exist_ok=True)
        np.save(world / "data" / "positions" / f"{index}.npy", places)
    for name, published in PUBLISHED.items():
        folder = published.write(world / "data" / name)
        write_matrices(folder / published.clips, published.names, published.width, frames=190)
    humanml3d = world / "data" / "HumanML3D"
    further = [f"00900{index}" for index in range(3)]
    write_matrices(humanml3d / "new_joint_vecs", further, 263, frames=190)
    with (humanml3d / "test.txt").open("a") as names:
        names.write("\n" + "\n".join(further) + "\n")
    for index in range(4):
        lafan1, bones = (world / "data" / name for name in ("LAFAN1_Retargeting_Dataset/g1", "bones-seed/g1/csv"))
        write_lafan1(lafan1 / f"walk{index}.csv", walk(90, index, joints=30))
        write_bones(bones / f"walk{index}.csv", walk(360, index, 120))
    (world / "g1_29dof.xml").write_text(mjcf())
    write_packed(world / "data" / "cmu" / "task.npz", (200, 200, 200), 150)


def _renamed(part: Part, names: dict[str, str]) -> Part:
    return part._replace(name=names.get(part.name, part.name), parent=names.get(part.parent, part.parent))


def link_project(world: Path) -> None:
    """The project's own folders and files, as in a checkout."""
    for name in ("launch", "benchmarks", "examples", "ds_configs", "tests", "docs", ".ci", "constraints.txt"):
        if (ROOT / name).exists():
            (world / name).symlink_to(ROOT / name)


def train(world: Path) -> None:
    """A body of three parts, two steps each, and runs of the upper body by the names that the pages use."""
    flags = [*SETTINGS, f"--data_path={world / BEAT2}"]
    named = {part: [f"--body_part={part}", f"--name={part}"] for part in PARTS}
    ranks = [start_ranks(1, ["-m", "ds_rvqvae.train", *flags, "--out=runs/body", *own]) for own in named.values()]
    features = [*SETTINGS, f"--data_path={world / 'data' / 'HumanML3D'}", "--out=runs", "--name=best-HumanML3D"]
    ranks.append(start_ranks(1, ["-m", "ds_rvqvae.train", *features]))
    for started in ranks:
        finish(started)
    body = world / "runs" / "body"
    parts = {part: MotionTokenizer.from_pretrained(body / part / "tokenizer") for part in PARTS}
    BodyTokenizer(parts).save_pretrained(body / "tokenizer")
    for name in RUNS:
        shutil.copytree(body / "upper", world / "runs" / name)


def write_foreign_checkpoints(world: Path) -> None:
    """The inputs of the import commands: a MoMask model with its options, a GestureLSM checkpoint with statistics."""
    options = {
        "name": "rvq", "dataset_name": "t2m", "vq_act": "relu", "vq_norm": None, "dilation_growth_rate": 3,
        "width": 8, "depth": 2, "down_t": 2, "stride_t": 2, "code_dim": 4, "nb_code": 16, "num_quantizers": 3,
    }  # fmt: skip
    weights = checkpoints.random_weights(**{**checkpoints.SMALL, "features": 263})
    file = checkpoints.model_as_published(world, "momask", weights, options, np.zeros(263), np.ones(263))
    file.parents[1].rename(world / "checkpoints" / "t2m" / "rvq_nq6_dc512_nc512_noshare_qdp0.2")
    weights = checkpoints.random_weights(**{**checkpoints.SMALL, "features": 78})
    torch.save({"net": weights}, world / "net_300000_upper.pth")
    for name, values in (("mean", np.zeros(330)), ("std", np.ones(330))):
        np.save(world / f"beatx_2_330_{name}.npy", values)


def write_evaluator(world: Path) -> None:
    """Weights of the text-motion matching, made at random, with their mean and std."""
    folder = world / "checkpoints" / "t2m"
    weights, meta = folder / "text_mot_match" / "model" / "finest.tar", folder / "Comp_v6_KLD01" / "meta"
    weights.parent.mkdir(parents=True)
    meta.mkdir(parents=True)
    torch.save(matching_checkpoint(263), weights)
    for name, values in (("mean", np.zeros(263)), ("std", np.ones(263))):
        np.save(meta / f"{name}.npy", values)


def write_profile(world: Path) -> None:
    shutil.copy(ROOT / "ds_configs" / "demo.json", world / "my_profile.json")


def names_of_programs(world: Path) -> dict[str, object]:
    """Names that the pages' programs take as given: motion of the upper body, a padded batch, pieces of a stream."""
    motion = (0.1 * np.random.default_rng(0).standard_normal((96, 78))).astype(np.float32)
    batch = np.stack([motion, np.concatenate([motion[:64], np.zeros((32, 78), np.float32)])])
    return {"motion": motion, "batch": batch, "lengths": [96, 64], "pieces": np.split(motion, 4)}
