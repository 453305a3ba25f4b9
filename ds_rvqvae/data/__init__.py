"""From motion files to packed frames to batches of windows. Public names load on first use."""

from typing import Any

__all__ = ["Store", "open_store"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ds_rvqvae.data.store import store

    return getattr(store, name)
