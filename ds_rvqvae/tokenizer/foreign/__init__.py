"""Other people's checkpoints: MoMask's, GestureLSM's and T2M-GPT's, in and out."""

from ds_rvqvae.tokenizer.foreign.formats import FORMATS
from ds_rvqvae.tokenizer.foreign.reading import import_foreign
from ds_rvqvae.tokenizer.foreign.writing import save_foreign

__all__ = ["FORMATS", "import_foreign", "save_foreign"]
