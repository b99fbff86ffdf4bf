"""The base class of errors that are reported to users."""

from __future__ import annotations


class DecaError(Exception):
    """An error whose message names the thing, the cause and the next command. The CLI prints it without a traceback.

    Any other exception is a bug and is reported with its traceback.
    """
