"""Names of clips and joints, shortened to fit into pictures."""

import re
from collections.abc import Sequence

from ds_rvqvae.errors import printable


def name_words(name: str, most: int = 200) -> str:
    """Shortens a name to `most` characters by cutting its middle, because names mostly differ at their ends."""
    words = " ".join(printable(name).split())
    if len(words) <= most:
        return words
    end = (most - 1) // 2
    return f"{words[: most - 1 - end]}…{words[len(words) - end :]}"


def short_names(names: Sequence[str], most: int) -> list[str]:
    """Shortens names to `most` characters each: first by the words at the start that all of them share."""
    words = [name_words(name, 1000) for name in names]
    if len(set(words)) > 1 and max(map(len, words)) > most:
        alike = [len(set(letters)) == 1 for letters in zip(*words, strict=False)]
        shared = re.match(r".*[\W_]", words[0][: [*alike, False].index(False)])
        if shared and len(shared[0]) > 1:
            words = [f"…{name[len(shared[0]) :]}" for name in words]
    return [name_words(name, most) for name in words]
