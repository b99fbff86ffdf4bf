"""The base of every error that a user may meet."""

from __future__ import annotations


class DecaError(Exception):
    """What went wrong, in one line: the thing, the cause, and what to do or run next. The command line shows no more.

    An exception that is none of these is a fault of the program: it is reported with its traceback.
    """
