"""The names of MoMask, GestureLSM and T2M-GPT for the parameters of these nets."""

from ds_rvqvae import RVQVAE
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.tokenizer.foreign.formats import FORMATS, net_keys
from tests.tokenizer.foreign.checkpoints import SMALL, as_t2mgpt, random_weights


def test_every_parameter_has_a_foreign_name():
    for norm in (None, "LN"):
        config = ModelConfig(width=8, depth=2, down_t=3, norm=norm, nb_code=4)
        nets = {key for key in RVQVAE(5, config).state_dict() if not key.startswith("quantizer.")}
        names = net_keys(config)
        assert set(names) == nets and len(set(names.values())) == len(nets)


def test_names_are_those_of_the_documented_checkpoints():
    weights = random_weights(**SMALL | {"projected": True})
    names = net_keys(ModelConfig(width=8, depth=2, down_t=2, code_dim=4, nb_code=16, num_quantizers=3))
    known = FORMATS["gesturelsm"]
    levels = [key for level in range(3) for key in (known.codebook_key(level), *known.projection_keys(level))]
    assert {*names.values(), *levels} == set(weights)
    assert FORMATS["momask"].codebook_key(2) == "quantizer.layers.2.codebook"
    one = as_t2mgpt(random_weights(**SMALL | {"levels": 1}))
    known = FORMATS["t2mgpt"]
    assert {known.prefix + key for key in (*names.values(), known.codebook_key(0))} == set(one)
