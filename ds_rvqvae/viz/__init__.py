"""Pictures of motion, stores and plans, drawn with matplotlib."""

from ds_rvqvae.errors import UserError

try:
    import matplotlib  # noqa: F401
except Exception as error:  # any type: MPLBACKEND, a matplotlibrc or its cache folder may be at fault
    _lines = str(error).splitlines() or [""]
    raise UserError(f"pictures: matplotlib cannot be used: {type(error).__name__}: {_lines[0]}") from error
