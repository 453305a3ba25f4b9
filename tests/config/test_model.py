"""The keys of nets and quantizer: derived values, and combinations that are refused."""

import pytest

from ds_rvqvae import load_profile
from ds_rvqvae.config.model import ModelConfig, check_quantizer
from ds_rvqvae.errors import UserError


@pytest.mark.parametrize("other", ["codebook_distance=cosine", "shared_codebook=true", "fsq_levels=[4,4,4,4,4]"])
def test_beam_search_takes_codebooks_of_each_level_by_euclidean_distance(other):
    with pytest.raises(UserError, match=r"rvqvae\.model\.beam_size"):
        load_profile("baseline", ["rvqvae.model.beam_size=4", f"rvqvae.model.{other}", "rvqvae.model.code_dim=30"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rvqvae.model.quantize_dropout_min_levels=7", "is more than the 6 levels"),
        ("rvqvae.model.gradient=rotation_trick", "gradient: lineage \\(MoMask's arithmetic\\) replaces it"),
        ("rvqvae.model.codebook_distance=cosine", "codebook_distance: lineage \\(MoMask's"),
        ("rvqvae.model.codebook_init=kmeans", "codebook_init: lineage \\(MoMask's"),
        ("rvqvae.model.dead_code_threshold=0", "dead_code_threshold: lineage \\(MoMask's"),
        ("rvqvae.model.mu_warm_up=0", "mu_warm_up: lineage \\(MoMask's"),
        ("rvqvae.model.beam_size=2", "beam_size: 2 cannot be used with lineage"),
    ],
)
def test_options_that_do_not_go_together_are_refused(override, complaint):
    with pytest.raises(UserError, match=complaint):
        load_profile("baseline", ["rvqvae.model.lineage=true", override])


def test_noise_goes_by_euclidean_distances_alone():
    with pytest.raises(UserError, match="sample_codebook_temp: is relative to euclidean distances"):
        load_profile("baseline", ["rvqvae.model.codebook_distance=cosine", "rvqvae.model.sample_codebook_temp=0.1"])


@pytest.mark.parametrize(("down_t", "stride_t", "frames"), [(0, 2, 1), (2, 2, 4), (3, 2, 8), (2, 3, 9), (3, 1, 1)])
def test_a_code_stands_for_the_frames_that_are_sampled_down_to_it(down_t, stride_t, frames):
    assert ModelConfig(down_t=down_t, stride_t=stride_t).code_stride == frames


def test_a_grid_has_no_place_for_keys_of_codebooks():
    grid = {"fsq_levels": [4, 4, 4, 4, 4], "code_dim": 30}
    assert ModelConfig().grid_key is None and ModelConfig(**grid).grid_key == "fsq_levels"
    check_quantizer(ModelConfig(**grid))
    check_quantizer(ModelConfig(mu=0.5))
    with pytest.raises(ValueError, match=r"rvqvae\.model\.mu: is for codebooks, and with fsq_levels there are none"):
        check_quantizer(ModelConfig(**grid, mu=0.5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fsq_levels": [4, 4], "code_dim": 2}, "product of its numbers is 16, but nb_code is 1024"),
        ({"fsq_levels": [4, 4], "nb_code": 16, "code_dim": 3}, "3 is not 1 to 6 times the 2 columns .*; use 2 to 12"),
        ({"fsq_levels": [4, 4], "nb_code": 16, "code_dim": 14}, "14 is not 1 to 6 times"),
        # 16 ** 6 are 2 ** 24 cells, and 2 ** 20 are the most; a level in two has 16 ** 3.
        ({"fsq_levels": [16], "nb_code": 16, "code_dim": 1}, "6 levels would divide each column into 16 cells"),
    ],
)
def test_a_grid_that_does_not_fit_its_codes_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        check_quantizer(ModelConfig(**values))
    check_quantizer(ModelConfig(fsq_levels=[16], nb_code=16, code_dim=2))
