"""Videos as sources: frames are listed, and read by timestamp, never extracted to disk.

A frame's member is `t=<seconds>&frame=<number>` (`clip.mp4#t=0.480000&frame=12`, a media fragment as browsers know it):
seconds since the first frame as the file times it, so a variable frame rate needs no special case, and any dataset that
keeps source_uri keeps the time. Its offset is the presentation timestamp in units of the stream. What a cut file or a
broken disk holds back is one more item, the rest, which fails when it is read.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from schemas.ledger import Item
from tasks.store.ranges import ReadError, open_checked

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
BLOCK = 8 * 2**20  # bytes fetched at once from a remote file
REST = "rest"  # member of the item for what is missing behind the last readable frame of a damaged file
FRAME = re.compile(r"t=(\d+\.\d{6})&frame=(\d+)")
INDEXED = ("mp4", "mov")  # containers that declare how many frames each stream has
SEEK_AHEAD = 10.0  # seconds: nearer frames are reached by decoding on


@dataclass(frozen=True)
class Frame:
    """Source of a frame: URI of the video, number from 0, seconds since the first frame."""

    video: str
    number: int
    seconds: float


def is_video(uri: str) -> bool:
    return uri.lower().endswith(VIDEO_SUFFIXES)


def frame_of(source_uri: str) -> Frame | None:
    """Return the frame of a source_uri, or None for an image.

    >>> frame_of("clips/a.mp4#t=0.480000&frame=12")
    Frame(video='clips/a.mp4', number=12, seconds=0.48)
    """
    video, _, member = source_uri.rpartition("#")
    found = FRAME.fullmatch(member)
    return Frame(video, int(found[2]), float(found[1])) if found else None


def video_frames(uri: str) -> Iterator[tuple[str, int, int]]:
    """(member, timestamp, -1) of every frame in the order they are shown; the file is read once, nothing is decoded.

    Raises ValueError for a file without readable video, FileNotFoundError.
    """
    with _opened(uri, None) as (container, stream):
        stamps, broken = _timestamps(container, stream)
        if not stamps:
            raise ValueError("the video stream holds no frame with a time")
        declared = stream.frames if any(kind in container.format.name for kind in INDEXED) else 0
        length, unit = _declared_seconds(stream), stream.time_base or Fraction(1)
    first, last = stamps[0], stamps[-1]
    for number, stamp in enumerate(stamps):
        yield f"t={float((stamp - first) * unit):.6f}&frame={number}", stamp, -1
    spacing = float((last - first) * unit) / max(len(stamps) - 1, 1)
    if broken or declared > len(stamps) or length > float((last - first) * unit) + 3 * spacing:
        yield REST, last, -1


def read_frame(item: Item, max_bytes: int) -> bytes:
    """Return a planned frame as PPM, as a player shows it: turned, mirrored, with square pixels.

    Raises ReadError where it cannot be decoded, or what the storage driver raises.
    """
    if item.member == REST:
        raise ReadError("the video is cut off or damaged behind its last readable frame; the frames before are planned")
    if item.offset is None:
        raise ReadError(f"frame {item.member!r} was planned without a time; plan again with --new")
    return _reader.read(item, item.offset, max_bytes)


@contextlib.contextmanager
def _opened(uri: str, etag: str | None) -> Iterator[tuple[Any, Any]]:
    """(container, video stream) of a file; ValueError where it holds no video."""
    with open_checked(uri, etag, BLOCK) as file:
        try:
            container = av.open(file, "r")
        except av.FFmpegError as error:
            raise ValueError(f"no video that can be opened ({_words(error)})") from error
        with container:
            stream = container.streams.best("video")  # not the image of a cover
            if stream is None:
                raise ValueError("the file holds no video stream")
            yield container, stream


def _timestamps(container: Any, stream: Any) -> tuple[list[int], bool]:
    """(times of the packets in the order they are shown, whether reading broke off)."""
    stamps: list[int] = []
    try:
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None and not packet.is_corrupt and packet.size:
                stamps.append(stamp)
    except av.FFmpegError:
        return sorted(set(stamps)), True
    return sorted(set(stamps)), False


def _declared_seconds(stream: Any) -> float:
    """How long the stream says it is; 0 where it does not say."""
    written = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska's
    if written:
        return 3600.0 * int(written[1]) + 60.0 * int(written[2]) + float(written[3])
    return 0.0


class _Reader:
    """The last video, kept open behind the last frame: units come in order, so each process decodes it about once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.key: tuple[str, str | None] | None = None
        self.stack = contextlib.ExitStack()
        self.container: Any = None
        self.stream: Any = None
        self.aspect: Fraction | None = None  # width of a pixel over its height, where only the container says it
        self.frames: Iterator[Any] = iter(())
        self.waiting: Any = None  # a frame behind the one that was asked for last
        self.at: int | None = None  # time that was asked for last
        self.sought = False  # whether decoding began in the middle
        self.trouble: Exception | None = None  # what the decoder has said last

    def read(self, item: Item, stamp: int, max_bytes: int) -> bytes:
        with self.lock:
            try:
                if self.key != (item.uri, item.etag):
                    self._open(item)
                frame = self._find(item, stamp)
                aspect = self.aspect or self.stream.codec_context.sample_aspect_ratio or Fraction(1)
                width = max(round(frame.width * float(aspect)), 1)
                if 3 * max(width, frame.width) * frame.height > max_bytes:
                    raise ReadError(f"frames of {width} x {frame.height} pixels, more than inputs.max_bytes")
                if frame.is_corrupt:
                    raise ReadError(f"the frame is damaged: {_words(self.trouble)}")
                pixels = frame.to_ndarray(format="rgb24", width=width, height=frame.height)
                return _as_ppm(upright(pixels, frame.side_data.get(Type.DISPLAYMATRIX)))
            except ReadError:
                raise
            except BaseException:
                self.key = None  # a container that failed is not read on
                raise

    def _open(self, item: Item) -> None:
        self.key = None
        self.stack.close()
        self.container, self.stream = self.stack.enter_context(_opened(item.uri, item.etag))
        # The container's aspect of a pixel, which players prefer; the codec's may change from frame to frame.
        said = self.stream.sample_aspect_ratio
        self.aspect = said if said != self.stream.codec_context.sample_aspect_ratio else None
        self.key = (item.uri, item.etag)
        self._begin(sought=False)

    def _begin(self, sought: bool) -> None:
        self.frames, self.waiting, self.at, self.sought = self._decoded(), None, None, sought

    def _find(self, item: Item, stamp: int) -> Any:
        """The frame shown at `stamp`. Raises ReadError."""
        ahead = stamp - ((self.stream.start_time or 0) if self.at is None else self.at)
        if ahead * float(self.stream.time_base) > SEEK_AHEAD or (self.at is not None and ahead <= 0):
            self.container.seek(stamp, stream=self.stream, backward=True)
            self._begin(sought=True)
        frame = self._next(stamp)
        if self.sought and (frame is None or frame.pts != stamp):  # the index was wrong, or the frame does not decode
            self._open(item)
            frame = self._next(stamp)
        self.at = stamp
        if frame is not None and frame.pts == stamp:
            return frame
        self.waiting = frame
        raise ReadError(f"the frame cannot be decoded: {_words(self.trouble)}")

    def _next(self, stamp: int) -> Any:
        """The first frame at or behind `stamp`; None at the end."""
        while (frame := self.waiting or next(self.frames, None)) is not None:
            self.waiting = None
            if frame.pts >= stamp:
                return frame
        return None

    def _decoded(self) -> Iterator[Any]:
        """Frames with a time; a packet that does not decode costs its own frames only."""
        for packet in self._packets():
            try:
                found = self.stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                self.trouble = error
                continue
            yield from (frame for frame in found if frame.pts is not None)

    def _packets(self) -> Iterator[Any]:
        """Packets up to where the file breaks off, then None, which drains the decoder."""
        try:
            yield from (packet for packet in self.container.demux(self.stream) if packet.size)
        except av.FFmpegError as error:
            self.trouble = error
        yield None


def upright(pixels: NDArray[np.uint8], matrix: Any) -> NDArray[np.uint8]:
    """Return decoded pixels (H,W,3) turned and mirrored as a player shows them.

    matrix: the frame's display matrix, None where it has none: nine native int32 a b u c d v x y w of FFmpeg, which
    moves the stored pixel (p, q) to (a p + c q, b p + d q), with q and y down. The nearest of the eight is taken: tilts
    between them are not turned, and the place of the image on the screen (x, y) is ignored.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(np.int64).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns: q decides about x, p about y
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _as_ppm(pixels: NDArray[np.uint8]) -> bytes:
    return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + np.ascontiguousarray(pixels).tobytes()


def _words(error: Exception | None) -> str:
    return str(getattr(error, "strerror", None) or error or "the decoder gives no reason")


_reader = _Reader()
