"""The folders of tokenizers as far as they can be told without torch."""

from pathlib import Path

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
BODY = "body.json"
"""In the folder of a body's tokenizer: names its parts, each of which lies in a folder of its name."""


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds an exported tokenizer, whatever its state."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def tokenizer_folder(folder: Path, body_part: str) -> Path:
    """The tokenizer of one body part: of a body's folder its part's, of any other the folder itself."""
    return folder / body_part if (folder / BODY).is_file() else folder
