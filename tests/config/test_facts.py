"""Facts about keys: every key states them, and they are true."""

import itertools
from typing import Annotated

import pytest
import torch
from pydantic import BaseModel, ValidationError

from ds_rvqvae import RVQVAE, MotionTokenizer
from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.config.facts import FREE, DataFacts, Facts, ModelFacts, facts_of, keys_that
from ds_rvqvae.config.model import LossConfig, ModelConfig
from ds_rvqvae.config.profile import RvqvaeConfig, load_profile, profile_from_dict, section_at
from ds_rvqvae.data.store.prepare import prepare
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.layout import feature_layout
from tests.data.formats.bvh_files import write_bvh_motion
from tests.settings import SMALL, models_with_another

KINDS = {"model": ModelFacts, "data": DataFacts, "loss": Facts, "schedule": Facts, "training": Facts}
"""The facts of the keys of each section."""
FACTS = facts_of(ModelConfig, ModelFacts)


def unsaid(section, kind, path):
    """Returns errors in the facts of a section's keys, including those of sections inside it."""
    found = []
    for key, field in section.model_fields.items():
        facts = [entry for entry in field.metadata if isinstance(entry, Facts)]
        if [type(entry) for entry in facts] != [kind]:
            found.append(
                f"{path}.{key}: says no facts, or others than {kind.__name__}; write {key}: "
                f"Annotated[its type, {kind.__name__}(…)] = …, and see ds_rvqvae/config/facts.py for what each means"
            )
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += unsaid(field.annotation, kind, f"{path}.{key}")
            inner = facts_of(field.annotation, kind)
            found += [
                f"{path}.{key}.{name}: says other facts than {path}.{key}" for name in inner if inner[name] != facts[0]
            ]
    return found


def test_every_key_says_its_facts():
    assert list(RvqvaeConfig.model_fields) == list(KINDS)
    wrong = [text for name in KINDS for text in unsaid(section_at(("rvqvae", name)), KINDS[name], f"rvqvae.{name}")]
    assert not wrong, "\n".join(wrong)


def test_a_key_that_says_none_is_named():
    class Forgetful(LossConfig):
        loss_foot: float = 0.0
        loss_hand: Annotated[float, FREE] = 0.0

    class Rules(BaseModel):
        fixed: Annotated[int, Facts(resume="fixed")] = 0

    class Nested(BaseModel):
        rules: Annotated[Rules, FREE] = Rules()

    (text,) = unsaid(Forgetful, Facts, "rvqvae.loss")
    assert text.startswith("rvqvae.loss.loss_foot: says no facts") and "Annotated[its type, Facts(…)]" in text
    assert unsaid(Nested, Facts, "x") == ["x.rules.fixed: says other facts than x.rules"]
    with pytest.raises(TypeError, match="codebooks_only"):
        ModelFacts(resume="free", codes="same", without_codebooks=False, lineage="same", formats="any")


def test_keys_come_in_the_sections_order():
    assert keys_that(DataConfig, DataFacts, lambda facts: facts.resume == "fixed" and facts.store == "no") == (
        *("body_part", "mean_file", "std_file"),
        *("std_floor", "feat_bias"),
    )


def tokenizer_of(config, state=None):
    torch.manual_seed(0)
    model = RVQVAE(6, config)
    if state is not None:
        model.load_state_dict(state)
    return MotionTokenizer(model, torch.zeros(6), torch.ones(6), feature_layout(6), 30.0)


def shapes(tokenizer):
    return {name: tensor.shape for name, tensor in tokenizer.model.state_dict().items()}


@pytest.mark.parametrize("key", FACTS)
def test_what_is_said_of_codes_is_true(key):
    """Codes of a small model and of one that differs in this key, with the same weights where possible."""
    base = tokenizer_of(SMALL)
    state = base.model.state_dict()
    motion = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    # All codes are in use: they are as long as the vectors that a level quantizes.
    latents = base.model.encode_latents(motion.unsqueeze(0)).detach()[0]
    for level, book in enumerate(base.model.quantizer.codebooks):
        book.copy_(latents / 2**level)
    base = tokenizer_of(SMALL, state)
    codes = base.encode(motion)
    for config in models_with_another(key):
        other = tokenizer_of(config)
        fits = shapes(other) == shapes(base)
        other = tokenizer_of(config, state) if fits else other
        same = (
            fits and torch.equal(other.encode(motion), codes) and torch.equal(other.decode(codes), base.decode(codes))
        )
        assert same == (FACTS[key].codes == "same"), config
        assert fits or FACTS[key].codes in ("weights", "setting", "setting if set")
        if FACTS[key].codes == "weights":
            assert not fits
        # The setting itself tells, as the weights have the same names and number.
        twin = other.fingerprint
        other.model.config = SMALL
        assert (twin != other.fingerprint) == FACTS[key].codes.startswith("setting"), config
    assert FACTS[key].resume == "fixed" or FACTS[key].codes in ("same", "setting if set")


def refusal_of(make, values):
    try:
        make(values)
    except (UserError, ValidationError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", FACTS)
def test_what_means_nothing_without_codebooks_is_refused_there(key):
    profile = load_profile("demo").to_dict()
    grids = [grid for name in FACTS if FACTS[name].without_codebooks for grid in models_with_another(name)]
    assert grids
    for grid, config in itertools.product(grids, models_with_another(key)):
        profile["rvqvae"]["model"] = {**grid.model_dump(), key: getattr(config, key)}
        said = f"rvqvae.model.{key}: is for codebooks" in refusal_of(profile_from_dict, profile)
        assert said == FACTS[key].codebooks_only, config


@pytest.mark.parametrize("key", FACTS)
def test_what_momask_has_its_own_of_is_refused_beside_its_arithmetic(key):
    for config in models_with_another(key):
        values = {**config.model_dump(), "lineage": True}
        said = f"rvqvae.model.{key}: lineage (MoMask's arithmetic) replaces it" in refusal_of(
            ModelConfig.model_validate, values
        )
        assert said == (FACTS[key].lineage != "same"), config


def test_of_several_keys_the_first_is_refused():
    """In this order: gradient, choice of codes, averages."""
    values = {"lineage": True, "mu_warm_up": 0, "dead_code_threshold": 0.0, "codebook_init": "kmeans"}
    order = ["codebook_init", "mu_warm_up", "dead_code_threshold"]
    values |= {"codebook_distance": "cosine", "gradient": "rotation_trick"}
    for key in ["gradient", "codebook_distance", *order]:
        assert f"rvqvae.model.{key}: lineage" in refusal_of(ModelConfig.model_validate, values)
        del values[key]
    assert not refusal_of(ModelConfig.model_validate, values)


class Recorded(DataConfig):
    """A dict that remembers which of its keys were read."""

    def __getattribute__(self, name):
        if name in DataConfig.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


@pytest.mark.parametrize("kind", ["beat2", "bvh"])
def test_no_other_keys_make_a_store_than_those_that_say_so(kind, demo_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_RVQVAE_CACHE", str(tmp_path / "cache"))
    if kind == "bvh":
        (tmp_path / "motion").mkdir()
        for seed in range(4):
            write_bvh_motion(tmp_path / "motion" / f"{seed}.bvh", seed=seed)
    config = Recorded(path=str(demo_folder if kind == "beat2" else tmp_path / "motion"))
    READ.clear()
    prepare(config, tmp_path / "store")
    of_a_store = keys_that(DataConfig, DataFacts, lambda facts: facts.store != "no")
    reading = keys_that(DataConfig, DataFacts, lambda facts: facts.reading)
    assert {"path", "fps", "store_dtype", "rules"} <= READ <= {*of_a_store}
    assert kind != "bvh" or {*reading} - {"csv_units", "joints"} <= READ
