"""The names of MoMask, GestureLSM and T2M-GPT for the parameters of these nets."""

from ds_rvqvae import RVQVAE
from ds_rvqvae.config.model import ModelConfig
from ds_rvqvae.tokenizer.foreign.formats import net_keys


def test_every_parameter_has_a_foreign_name():
    for norm in (None, "LN"):
        config = ModelConfig(width=8, depth=2, down_t=3, norm=norm, nb_code=4)
        nets = {key for key in RVQVAE(5, config).state_dict() if not key.startswith("quantizer.")}
        names = net_keys(config)
        assert set(names) == nets and len(set(names.values())) == len(nets)
