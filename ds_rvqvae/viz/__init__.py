"""Pictures: of motion, stores and plans; matplotlib is imported by those that draw."""

from ds_rvqvae.errors import UserError

try:
    import matplotlib  # noqa: F401
except Exception as error:  # of any type: MPLBACKEND, a matplotlibrc, a folder for its cache
    _lines = str(error).splitlines() or [""]
    raise UserError(f"pictures: matplotlib cannot be used: {type(error).__name__}: {_lines[0]}") from error
