"""Seeds as pure functions of where training stands, so that nothing random has to be stored."""

import hashlib


def fold_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that any change of `parts` changes; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
