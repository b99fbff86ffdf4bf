"""DECA (Feng et al., SIGGRAPH 2021): the method alone, with nothing but torch and numpy at import.

>>> from deca_core import DECA
>>> from deca_core.assets import procedural_head
>>> model = DECA(procedural_head())  # doctest: +SKIP
>>> codes = model.encode(images)  # doctest: +SKIP
>>> out = model.decode(codes)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deca_core.codes import Codes
    from deca_core.model import DECA, Reconstruction

__all__ = ["DECA", "Codes", "Reconstruction"]


def __getattr__(name: str) -> Any:
    """A public name at its first use: importing `deca_core.errors` must not cost the seconds that torch takes."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deca_core import codes, model

    return getattr(codes if name == "Codes" else model, name)
