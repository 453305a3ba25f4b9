"""The protocol that each number of `evaluate` follows, in words, with its source."""

from collections.abc import Mapping, Sequence
from typing import Any

from ds_rvqvae.motion import recovery

_PROTOCOLS = {
    "l1": ("L1", "mean over frames of complete clips and over columns, normalised; this project's own"),
    "angle_error_deg": ("angle", "geodesic, over joints; Huynh 2009"),
    "velocity_error": ("velocity", "L1 of the difference of neighbouring frames; this project's own"),
    "mpjpe_mm": ("MPJPE", "roots aligned, over the joints in use without the root; Human3.6M, Ionescu et al. 2014"),
    "pa_mpjpe_mm": ("PA-MPJPE", "rotated, scaled and shifted frame by frame; protocol 2 of Kanazawa et al. 2018"),
    "mpjpe_global_mm": ("MPJPE in the world", "not aligned, the root among the joints"),
    "root_error_mm": (
        "root",
        "its distance from the original's; both paths start at the same place where columns are velocities",
    ),
    "root_drift_mm_per_s": ("drift", "the root's distance in the last frame per second of the clip"),
    "joint_jerk": ("jerk", "third derivative of joints in the world; the jitter of TransPose, Yi et al. 2021"),
    "foot_sliding": ("sliding", "horizontal speed of feet that stand in the original; this project's own"),
    "foot_skating": (
        "skating",
        "steps with a foot under 5 cm and over 50 cm/s; GMD, Karunratanakul et al. 2023, but a mean over steps",
    ),
    "fid": (
        "FID",
        "of HumanML3D's or KIT's text-motion matching, Guo et al. 2022; clips cut as by MoMask, Guo et al. 2024, once "
        "with a fixed seed, not 20 times; every clip counts, pieces of clips named by texts do not",
    ),
    "matching": (
        "matching",
        "mean distance of a reconstruction's embedding from its original's; this project's own. Not the matching score "
        "of papers, which is the distance from the text's embedding",
    ),
    "diversity": ("diversity", "mean distance of 300 pairs of clips (100 of 300 clips or fewer), fixed seed; as FID"),
    "fgd": (
        "FGD",
        "of the motion autoencoder of EMAGE, Liu et al. 2024, over 55 joints; those that a tokenizer does not have "
        "are the original's, which makes the number smaller than that of a complete body",
    ),
    "frechet": ("Fréchet", "of the features of --features; comparable only by the same encoder and windows"),
}
_STREAMER = (
    "roots aligned, over all joints and the root, positions by recover_from_local_position; MotionStreamer, Xiao et "
    "al. 2025"
)
_MOMASK = "roots aligned, over all joints and the root, positions by recover_from_ric; MoMask, Guo et al. 2024"


def protocols_of(scores: Mapping[str, Any]) -> dict[str, str]:
    """Returns the protocol of each number that was measured, by its key in the scores."""
    found = {key: words for key, (_, words) in _PROTOCOLS.items() if scores.get(key) is not None}
    skeleton = scores.get("skeleton")
    if "mpjpe_mm" in found and skeleton in recovery.NAMES.values():
        found["mpjpe_mm"] = _STREAMER if skeleton == recovery.NAMES[recovery.HUMANML3D_272] else _MOMASK
    return found


def protocol_lines(scores: Mapping[str, Any]) -> list[str]:
    """Returns the same as lines of text."""
    return [f"{_PROTOCOLS[key][0]}: {words}" for key, words in protocols_of(scores).items()]


def protocol_lines_of_all(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of several tokenizers, each once; a number with several protocols has a line for each."""
    return list(dict.fromkeys(line for scores in results for line in protocol_lines(scores)))
