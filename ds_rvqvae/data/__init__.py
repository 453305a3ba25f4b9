"""Motion files to packed frames to batches of windows."""

from ds_rvqvae.data.store import Store, open_store

__all__ = ["Store", "open_store"]
