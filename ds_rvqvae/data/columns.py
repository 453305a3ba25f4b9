"""The number of columns of a profile's motion, from one of its clips, before there is a store."""

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.store import is_store, open_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Layout, select_columns, smplx_layout
from ds_rvqvae.process.home import expanded


def columns_in_use(config: DataConfig, path: str | None = None) -> int:
    """Returns the number of columns that a model of `config` takes for the motion at `path`, or for SMPL-X data.

    Raises:
        UserError: a user-defined body part without motion, because its joints are then not known; or motion that
            cannot be read, or has no such part.
    """
    own = config.body_part in (config.body_parts or ())
    if path is not None:
        layout, has_parts = _layout_of(path, config)
    elif own:
        raise UserError(
            f"rvqvae.data.body_part: the number of columns of {config.body_part} is not known without motion; give "
            "--data_path or --in_features"
        )
    else:
        layout, has_parts = smplx_layout(), True
    if not (own or has_parts):
        return layout[-1].stop
    return len(select_columns(layout, config.body_part, config.body_parts)[0])


def _layout_of(path: str, config: DataConfig) -> tuple[Layout, bool]:
    """Returns the columns of a store or of the first readable file, and whether SMPL-X's body parts fit them."""
    folder = expanded(path)
    if is_store(folder):
        store = open_store(folder)
        return store.layout, store.has_body_parts
    reader = open_reader(folder, config)
    reason = "holds no clips"
    for name in reader.clip_names():
        try:
            return reader.take(name).layout, reader.has_body_parts
        except ClipError as error:
            reason = f"{reader.file_of(name)}: {error}"
    raise UserError(f"{path}: {reason}")
