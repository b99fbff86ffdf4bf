"""DECA (Feng et al., SIGGRAPH 2021): the method alone, with nothing but torch and numpy at import.

>>> from deca_core import DECA
>>> from deca_core.assets import procedural_head
>>> model = DECA(procedural_head())  # doctest: +SKIP
>>> codes = model.encode(images)  # doctest: +SKIP
>>> out = model.decode(codes)  # doctest: +SKIP
"""

from deca_core.codes import Codes
from deca_core.model import DECA, Reconstruction

__all__ = ["DECA", "Codes", "Reconstruction"]
