"""Messages of image libraries during decoding, returned to the caller instead of printed without a file name.

libtiff prints from C, Pillow warns and logs through Python. Handlers that are set once in a process put each message
into the list of the thread that is decoding, so threads need not wait for one another and nothing else is caught.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TextIO

from PIL import _imaging

LONGEST = 300  # characters of a message
KEPT = 3  # messages of one image: a damaged TIFF has hundreds

logger = logging.getLogger("deca")


@dataclass
class Heard:
    """The first messages about one image, and how many there were."""

    messages: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, message: str) -> None:
        message = " ".join(message.split())[:LONGEST]
        self.count += 1
        if len(self.messages) < KEPT and message not in self.messages:
            self.messages.append(message)

    def __str__(self) -> str:
        more = self.count - len(self.messages)
        return "; ".join(self.messages) + (f" (and {more} more)" if more else "")


class _Thread(threading.local):
    heard: Heard | None = None


_thread = _Thread()
_lock = threading.Lock()


@contextlib.contextmanager
def heard() -> Iterator[Heard]:
    """Collect the messages of this thread's image libraries."""
    _listen()
    before, _thread.heard = _thread.heard, Heard()
    try:
        yield _thread.heard
    finally:
        _thread.heard = before


def _say(message: str) -> None:
    if _thread.heard is None:
        logger.warning("an image library says: %s", message[:LONGEST])
    else:
        _thread.heard.add(message)


def _listen() -> None:
    _listen_to_pillow()
    _listen_to_libtiff()
    with _lock:
        if warnings.showwarning is not _show:  # at first, and where a test has put the earlier one back
            global _show_before
            _show_before = warnings.showwarning
            warnings.showwarning = _show
            # Python's default shows a text once in a process: the second image would go without.
            warnings.filterwarnings("always", module=r"PIL\.")


_show_before: Any = warnings.showwarning


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if _thread.heard is None:
        _show_before(message, category, filename, lineno, file, line)
    else:
        _thread.heard.add(str(message))


class _PillowHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if _thread.heard is not None:
            _thread.heard.add(record.getMessage())


@cache
def _listen_to_pillow() -> None:
    logging.getLogger("PIL").addHandler(_PillowHandler(logging.WARNING))


@cache
def _listen_to_libtiff() -> Any:
    """libtiff's two handlers, replaced through the library that Pillow is linked to; where its symbols are hidden
    (Windows, a static build) it still prints. Returns objects that must live as long as the process.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)
        format_text = ctypes.CDLL(None).vsnprintf
        setters = library.TIFFSetErrorHandler, library.TIFFSetWarningHandler
    except (AttributeError, OSError, TypeError):
        return None
    format_text.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]

    # void handler(const char *module, const char *format, va_list arguments): a va_list is passed as a pointer by the
    # calling conventions of the 64-bit systems that Pillow has wheels for.
    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)
    def handler(module: bytes | None, template: int | None, arguments: int | None) -> None:
        buffer = ctypes.create_string_buffer(LONGEST)
        format_text(buffer, LONGEST, template, arguments)
        _say(f"{(module or b'libtiff').decode(errors='replace')}: {buffer.value.decode(errors='replace')}")

    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        setter(ctypes.cast(handler, ctypes.c_void_p))
    return handler
