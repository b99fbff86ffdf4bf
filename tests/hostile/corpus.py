"""Every kind of hostile input, by name; importing the modules adds them."""

from tests.hostile import archives, commands, images, tables  # noqa: F401
from tests.hostile.kinds import KINDS, Kind

__all__ = ["KINDS", "Kind"]
