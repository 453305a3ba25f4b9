"""What is known of a checkpoint, and from where: its shapes, an option file, a flag. Without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.foreign.formats import ForeignFormat
from ds_rvqvae.tokenizer.foreign.options import Options, Said

SHAPES = "shapes"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and what it was taken from."""

    value: Any
    source: str


class Settings:
    """Collects settings, each from the first of flag, shapes and option file that tells it, and what none tells.

    Args:
        file: the checkpoint.
        known: whose it is.
        options: of the option files around it.
    """

    def __init__(self, file: Path, known: ForeignFormat, options: Options) -> None:
        self.file, self.known, self.options = file, known, options
        self.found: dict[str, Setting] = {}
        self._missing: list[str] = []

    def set(self, key: str, value: Any, source: str) -> None:
        self.found[key] = Setting(value, source)

    def told(self) -> dict[str, dict[str, Any]]:
        """All that was found, as a tokenizer's config file keeps it."""
        return {key: {"value": one.value, "from": one.source} for key, one in self.found.items()}

    def from_shapes(self, key: str, value: Any) -> None:
        """A value that the shapes of the weights tell.

        Raises:
            UserError: an option file says another.
        """
        for one in self.options.of(key):
            if one.value != value:
                self.refuse(one, f"the shapes of {self.file.name} say {value}")
        self.set(key, value, SHAPES)

    def choose(self, key: str, flag: Any, wanted: str, said: list[Said] | None = None) -> Any:
        """A value that the shapes do not tell; None, and counted as missing, where nothing else does.

        Args:
            flag: what its flag says, where it was given.
            wanted: the flag to give, `--fps N`.
            said: by option files; by default what they say of `key`.
        """
        said = self.options.of(key) if said is None else said
        if flag is not None:
            against = [one.where for one in said if one.value != flag]
            self.set(key, flag, f"--{key}" + (f", against {' and '.join(against)}" if against else ""))
        elif len(said) == 1:
            self.set(key, said[0].value, said[0].where)
        else:
            self.miss(wanted + (f" ({', '.join(one.where for one in said)} differ)" if said else ""))
            return None
        return self.found[key].value

    def miss(self, wanted: str) -> None:
        """Counts a flag as one that has to be given."""
        self._missing.append(wanted)

    def refuse(self, one: Said, other: str) -> None:
        """Raises UserError: an option file does not agree with the weights."""
        raise UserError(
            f"{one.file} says {one.text}, and {other}: they are not of one model; name its own option file with "
            "--options, or move this one away"
        )

    def check(self) -> None:
        """Raises UserError that names all flags that have to be given."""
        if not self._missing:
            return
        *most, last = self._missing
        flags = f"{', '.join(most)}, and {last}" if most else last
        names = " and ".join(dict.fromkeys(str(file) for file in self.options.files))
        if names:
            raise UserError(
                f"{self.file}: neither its shapes nor {names} tell all that codes and motion depend on; give {flags}"
            )
        raise UserError(
            f"{self.file}: shapes do not tell all that codes and motion depend on, and no option file "
            f"({self.known.title} has {', '.join(self.known.option_files)}) lies beside it; give {flags}"
        )
