"""The keys of nets and quantizer: what they amount to, and which do not go together."""

import pytest

from ds_rvqvae import load_profile
from ds_rvqvae.errors import UserError


@pytest.mark.parametrize("other", ["codebook_distance=cosine", "shared_codebook=true", "fsq_levels=[4,4,4,4,4]"])
def test_beam_search_takes_codebooks_of_each_level_by_euclidean_distance(other):
    with pytest.raises(UserError, match=r"rvqvae\.model\.beam_size"):
        load_profile("baseline", ["rvqvae.model.beam_size=4", f"rvqvae.model.{other}", "rvqvae.model.code_dim=30"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rvqvae.model.quantize_dropout_min_levels=7", "is more than the 6 levels"),
        ("rvqvae.model.gradient=rotation_trick", "gradient: lineage, MoMask's arithmetic, has its own"),
        ("rvqvae.model.codebook_distance=cosine", "codebook_distance: lineage, MoMask's"),
        ("rvqvae.model.codebook_init=kmeans", "codebook_init: lineage, MoMask's"),
        ("rvqvae.model.dead_code_threshold=0", "dead_code_threshold: lineage, MoMask's"),
        ("rvqvae.model.mu_warm_up=0", "mu_warm_up: lineage, MoMask's"),
        ("rvqvae.model.beam_size=2", "beam_size: 2 goes neither with lineage"),
    ],
)
def test_options_that_do_not_go_together_are_refused(override, complaint):
    with pytest.raises(UserError, match=complaint):
        load_profile("baseline", ["rvqvae.model.lineage=true", override])


def test_noise_goes_by_euclidean_distances_alone():
    with pytest.raises(UserError, match="sample_codebook_temp: is relative to euclidean distances"):
        load_profile("baseline", ["rvqvae.model.codebook_distance=cosine", "rvqvae.model.sample_codebook_temp=0.1"])
