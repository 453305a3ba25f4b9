"""How many columns a profile's motion has, from one clip of it and before there is a store."""

from ds_rvqvae.config.data import DataConfig
from ds_rvqvae.data.formats.readers import open_reader
from ds_rvqvae.data.store.store import is_store, open_store
from ds_rvqvae.errors import UserError
from ds_rvqvae.motion.clip import ClipError
from ds_rvqvae.motion.layout import Layout, select_columns, smplx_layout
from ds_rvqvae.process.home import expanded


def columns_in_use(config: DataConfig, path: str | None = None) -> int:
    """Columns that a model of `config` takes: of the motion at `path`, without one of SMPL-X data.

    Raises:
        UserError: a body part of one's own without motion, whose joints are not known then; or motion that cannot be
            read, or has no such part.
    """
    own = config.body_part in (config.body_parts or ())
    if path is not None:
        layout, has_parts = _layout_of(path, config)
    elif own:
        raise UserError(
            f"rvqvae.data.body_part: how many columns {config.body_part} has is not known without motion; give "
            "--data_path or --in_features"
        )
    else:
        layout, has_parts = smplx_layout(), True
    if not (own or has_parts):
        return layout[-1].stop
    return len(select_columns(layout, config.body_part, config.body_parts)[0])


def _layout_of(path: str, config: DataConfig) -> tuple[Layout, bool]:
    """The columns of a store, or of the first file that can be read, and whether SMPL-X's parts select of them."""
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
