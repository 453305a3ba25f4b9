"""The encoders of the text-motion matching against numbers of the published classes, and the clips they take."""

import numpy as np
import pytest
import torch

from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout
from ds_rvqvae.tokenizer.scores.published.matching import MatchingEvaluator, diversity
from tests.tokenizer.scores.published.weights import matching_checkpoint

# First three embeddings of the first two clips, from the published classes with these weights and clips.
PUBLISHED = {
    263: [[0.087188, 0.060985, 0.03064], [0.02203, 0.065151, 0.05117]],
    251: [[0.101857, 0.095714, 0.066971], [0.061276, 0.150489, 0.074226]],
}


def _evaluator(columns):
    checkpoint = matching_checkpoint(columns)
    mean, std = np.linspace(-1, 1, columns, dtype=np.float32), np.linspace(0.5, 2, columns, dtype=np.float32)
    return MatchingEvaluator(checkpoint["movement_encoder"], checkpoint["motion_encoder"], columns, mean, std)


@pytest.fixture(scope="module")
def evaluator():
    return _evaluator(263)


def _clips(columns):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(frames, columns, generator=generator) for frames in (40, 196, 100, 44)]


@pytest.mark.parametrize("columns", PUBLISHED)
def test_embeddings_are_those_of_the_published_classes_in_the_order_given(columns):
    # The published code sorts clips by length and returns them so; 40, 196, 100, 44 is not sorted.
    found = _evaluator(columns).embeddings(_clips(columns))
    assert found.shape == (4, 512)
    np.testing.assert_allclose(found[:2, :3], PUBLISHED[columns], atol=1e-5)


def test_the_order_and_the_company_of_clips_do_not_matter(evaluator):
    clips = _clips(263)
    together = evaluator.embeddings(clips)
    np.testing.assert_allclose(evaluator.embeddings(clips[::-1]), together[::-1], atol=1e-6)
    np.testing.assert_allclose(evaluator.embeddings(clips[2:3]), together[2:3], atol=1e-6)


def test_cuts_are_multiples_of_four_one_of_three_shorter_and_the_same_each_time(evaluator):
    evaluator.clear()
    first = [evaluator.frames(103) for _ in range(600)]
    lengths = np.array([cut.stop - cut.start for cut in first])
    assert set(lengths) == {100, 96}
    assert 0.27 < (lengths == 96).mean() < 0.40
    assert {cut.start for cut in first if cut.stop - cut.start == 96} == set(range(8))
    assert max(cut.stop for cut in first) == 103
    evaluator.clear()
    assert [evaluator.frames(103) for _ in range(600)] == first


def test_clips_of_40_to_199_frames_count_and_of_24_for_kit(evaluator):
    assert evaluator.frames(39) is None and evaluator.frames(200) is None
    assert evaluator.frames(40) is not None and evaluator.frames(199).stop <= 199
    assert _evaluator(251).frames(24) is not None and _evaluator(251).frames(23) is None


def test_other_columns_are_refused(evaluator):
    evaluator.check(feature_layout(263), "motion")
    with pytest.raises(UserError, match=r"motion: 251 columns, but the text-motion matching of HumanML3D takes"):
        evaluator.check(feature_layout(251), "motion")


def test_a_perfect_reconstruction_has_no_distance_and_a_worse_one_more(evaluator):
    generator = np.random.default_rng(0)
    clips = [generator.normal(size=(40, 263)).astype(np.float32) for _ in range(5)]
    found = []
    for size in (0, 0.5, 2):
        evaluator.clear()
        for clip in clips:
            evaluator.add(clip, clip + np.float32(size), np.arange(263))
        found.append(evaluator.scores())
    assert found[0]["fid"] < 1e-6 and found[0]["matching"] == 0
    assert found[0]["fid"] < found[1]["fid"] < found[2]["fid"]
    assert found[0]["matching"] < found[1]["matching"] < found[2]["matching"]
    assert found[0]["evaluator_samples"] == 5 and found[0]["diversity"] is None


def test_one_clip_is_too_few(evaluator):
    evaluator.clear()
    evaluator.add(*np.zeros((2, 40, 263), np.float32), np.arange(263))
    with pytest.raises(UserError, match="1 clips of 40 to 199 frames are too few"):
        evaluator.scores()


def test_diversity_is_the_mean_distance_of_pairs_drawn_without_repeats(evaluator):
    assert evaluator._pairs(100) is None
    for count, times in ((101, 100), (300, 100), (301, 300)):
        pairs = evaluator._pairs(count)
        assert pairs.shape == (2, times) and all(len(set(row)) == times for row in pairs.tolist())
    points = np.array([[0, 0], [3, 4], [0, 1]], np.float32)
    assert diversity(points, np.array([[0, 0], [1, 2]])) == pytest.approx(3)
