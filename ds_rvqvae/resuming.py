"""What `--resume` goes on from, and what may differ from the run it goes on with. Without torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_rvqvae.checkpoints import checkpoints, read_manifest, step_of, whole_checkpoint
from ds_rvqvae.errors import UserError
from ds_rvqvae.profile import Profile, load_profile

FIXED_KEYS = (
    *("width", "depth", "down_t", "stride_t", "dilation_growth_rate", "activation", "norm"),
    *("code_dim", "nb_code", "num_quantizers", "shared_codebook"),
)
"""Keys of `rvqvae.model` that make other weights; the others may change on the way."""
FIXED_DATA_KEYS = ("body_part", "fps", "mean_file", "std_file", "std_floor")
"""Keys of `rvqvae.data` that make other inputs."""


@dataclass
class Resume:
    """Where a resumed run goes on."""

    checkpoint: Path | None = None
    """None: at step 0."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: checkpoints passed over, settings that changed."""

    def step(self) -> int:
        return 0 if self.checkpoint is None else step_of(self.checkpoint)


def find_resume(run_folder: Path, profile: Profile, world_size: int, thorough: bool = True) -> Resume:
    """Chooses the checkpoint to go on from. Changes nothing.

    Args:
        thorough: read every file of it; the launcher, which only wants to refuse early, does not.

    Raises:
        UserError: checkpoints exist and none is whole, each named; or the profile or the ranks do not fit it.
    """
    folder = run_folder / "checkpoints"
    if not checkpoints(folder):
        return Resume(notes=[f"{run_folder} has no checkpoint yet: starting at step 0"])
    checkpoint, damaged = whole_checkpoint(folder, thorough)
    if checkpoint is None:
        raise UserError(f"--resume: no whole checkpoint: {'; '.join(damaged)}; start a new run by another --name")
    notes = [f"damaged, passed over: {text}" for text in damaged]
    notes += _changed_keys(run_folder, profile)
    saved_by = read_manifest(checkpoint)["world_size"]
    if saved_by != world_size:
        raise UserError(
            f"--resume: {checkpoint} was saved by {saved_by} ranks, this run has {world_size}; take {saved_by}"
        )
    return Resume(checkpoint, [*notes, f"going on from {checkpoint}"])


def _changed_keys(run_folder: Path, profile: Profile) -> list[str]:
    """Notes on settings that differ from the run's; raises UserError for one that must not."""
    file = run_folder / "profile.json"
    before, now = load_profile(file).rvqvae, profile.rvqvae
    for section, keys in (("model", FIXED_KEYS), ("data", FIXED_DATA_KEYS)):
        for key in keys:
            old, new = (getattr(getattr(settings, section), key) for settings in (before, now))
            if old != new:
                was = json.dumps(old)
                raise UserError(
                    f"--resume: rvqvae.{section}.{key} was {was} in {file} and cannot change to {json.dumps(new)}"
                )
    old, new = (flat_keys(settings) for settings in (load_profile(file).to_dict(), profile.to_dict()))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"changed: {key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}" for key in changed]


def flat_keys(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested objects as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flat_keys(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat
