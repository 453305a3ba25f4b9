"""Collect the settings of a checkpoint and their sources: its shapes, an option file, a flag. Without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rvqvae.errors import UserError
from ds_rvqvae.tokenizer.foreign.formats import ForeignFormat
from ds_rvqvae.tokenizer.foreign.options import Options, Said

SHAPES = "shapes"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and its source."""

    value: Any
    source: str


class Settings:
    """Collects settings, each from the first of flag, shapes and option file that gives it, and lists those missing.

    Args:
        file: the checkpoint.
        known: the system that wrote it.
        options: of the option files around it.
    """

    def __init__(self, file: Path, known: ForeignFormat, options: Options) -> None:
        self.file, self.known, self.options = file, known, options
        self.found: dict[str, Setting] = {}
        self._missing: list[str] = []

    def set(self, key: str, value: Any, source: str) -> None:
        self.found[key] = Setting(value, source)

    def told(self) -> dict[str, dict[str, Any]]:
        """Returns all settings found, as a tokenizer's config file keeps them."""
        return {key: {"value": one.value, "from": one.source} for key, one in self.found.items()}

    def from_shapes(self, key: str, value: Any) -> None:
        """Takes a value from the shapes of the weights.

        Raises:
            UserError: an option file says another value.
        """
        for one in self.options.of(key):
            if one.value != value:
                self.refuse(one, f"the shapes in {self.file.name} say {value}")
        self.set(key, value, SHAPES)

    def choose(self, key: str, flag: Any, wanted: str, said: list[Said] | None = None) -> Any:
        """Returns a value that the shapes do not give; None, and listed as missing, if nothing else gives it.

        Args:
            flag: value of its flag, if given.
            wanted: the flag to ask for, such as `--fps N`.
            said: the values in option files; by default those of `key`.
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
        """Adds a flag to those that must be given."""
        self._missing.append(wanted)

    def refuse(self, one: Said, other: str) -> None:
        """Raises UserError: an option file does not agree with the weights."""
        raise UserError(
            f"{one.file} says {one.text}, but {other}: they belong to different models; name the right option file "
            "with --options, or move this one away"
        )

    def check(self) -> None:
        """Raises UserError if flags must be given; the message names all of them."""
        if not self._missing:
            return
        *most, last = self._missing
        flags = f"{', '.join(most)}, and {last}" if most else last
        names = " and ".join(dict.fromkeys(str(file) for file in self.options.files))
        if names:
            raise UserError(
                f"{self.file}: its shapes and {names} do not say all that codes and motion depend on; give {flags}"
            )
        raise UserError(
            f"{self.file}: its shapes do not say all that codes and motion depend on, and there is no option file "
            f"({self.known.title} has {', '.join(self.known.option_files)}) beside it; give {flags}"
        )
