"""Frames of real videos: listed, read in any order, and what becomes of files that are cut, damaged or turned."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest

from schemas.engine import SourceConfig
from schemas.ledger import Item
from tasks.heads.clips import write_clip
from tasks.sources.discover import SourceError, discover
from tasks.sources.images import decode_image
from tasks.sources.read import read_items
from tasks.sources.videos import REST, frame_of, upright, video_frames
from tasks.store.ranges import ReadError

STEP = 8  # grey levels from frame to frame


def grey(count: int, size: tuple[int, int] = (64, 80)) -> list[np.ndarray]:
    """Images whose grey value is STEP times their number."""
    return [np.full((*size, 3), STEP * index, np.uint8) for index in range(count)]


def noise(count: int) -> list[np.ndarray]:
    """Images that compress badly, so that a cut file has lost some."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (64, 80, 3)).astype(np.uint8) for _ in range(count)]


def number(data: bytes | Exception) -> int:
    assert isinstance(data, bytes), data
    return round(float(decode_image(data).mean()) / STEP)


def clip(path: Path, images: list[np.ndarray]) -> Path:
    """Write images as a video of 25 frames a second."""
    write_clip(path, images, [index / 25 for index in range(len(images))])
    return path


def encode(path: Path, codec: str, images: list[np.ndarray], aspect: Fraction | None = None, **stream: Any) -> Path:
    """Write images with one of FFmpeg's codecs; aspect: width of a pixel over its height."""
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, **{"rate": 25, **stream})
        track.height, track.width, _ = images[0].shape
        track.pix_fmt = "yuv420p"
        if aspect is not None:
            track.codec_context.sample_aspect_ratio = aspect
        for image in images:
            container.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(track.encode(None))
    return path


def read(items: list[Item]) -> list[bytes | Exception]:
    return [data for _, data in read_items(items)]


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[Path, list[float]]:
    """30 frames at a variable rate."""
    times = [0.0, 0.04, 0.1, 0.12, *(0.2 + 0.033 * index for index in range(26))]
    write_clip(tmp_path / "clip.mp4", grey(30), times)
    return tmp_path / "clip.mp4", times


def test_frames_keep_their_times(uneven):
    path, times = uneven
    items = list(discover(str(path)))
    frames = [frame_of(item.source_uri) for item in items]
    assert [frame.number for frame in frames] == list(range(30))
    assert np.allclose([frame.seconds for frame in frames], times, atol=1e-5)
    assert {frame.video for frame in frames} == {str(path)}
    assert len({item.image_id for item in items}) == 30
    assert [number(data) for data in read(items)] == list(range(30))


def test_frames_in_any_order_and_again(uneven):
    items = list(discover(str(uneven[0])))
    wanted = [29, 3, 3, 0, 17, 16, 18]
    assert [number(read([items[index]])[0]) for index in wanted] == wanted


def test_a_far_frame_is_sought_and_is_the_same(tmp_path):
    """Two minutes at a frame a second, in a container without an index of frames."""
    images = [np.full((32, 32, 3), 2 * index, np.uint8) for index in range(120)]
    path = encode(tmp_path / "long.mkv", "libx264", images, rate=1, options={"g": "10"})
    items = list(discover(str(path)))
    assert len(items) == 120
    for index in (100, 5, 119):
        assert abs(float(decode_image(read([items[index]])[0]).mean()) - 2 * index) <= 2


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.ts", "libx264"), ("a.avi", "mpeg4")]
)
def test_other_containers(tmp_path, name, codec):
    items = list(discover(str(encode(tmp_path / name, codec, grey(12)))))
    assert [round(25 * frame_of(item.source_uri).seconds) for item in items] == list(range(12))
    assert [number(data) for data in read(items)] == list(range(12))


def test_a_cut_video_gives_what_is_there_and_one_row_for_the_rest(tmp_path):
    data = clip(tmp_path / "whole.mp4", noise(40)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    items = list(discover(str(tmp_path / "cut.mp4")))
    assert 20 <= len(items) < 40
    assert items[-1].member == REST
    *frames, rest = read(items)
    assert all(isinstance(frame, bytes) for frame in frames)
    assert isinstance(rest, ReadError)
    assert "cut off" in str(rest)
    assert [frames] == [read(list(discover(str(tmp_path / "whole.mp4"))))[: len(frames)]]


def test_damage_in_the_middle_costs_the_frames_it_struck(tmp_path):
    path = clip(tmp_path / "clip.mp4", noise(40))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    found = read(list(discover(str(path))))
    bad = [index for index, frame in enumerate(found) if isinstance(frame, Exception)]
    assert 0 < len(bad) < 10
    assert min(bad) > 10
    assert all("frame" in str(found[index]) for index in bad)


def test_what_is_no_video_is_one_clear_error(tmp_path):
    path = clip(tmp_path / "clip.mp4", grey(5))
    (tmp_path / "head.mp4").write_bytes(path.read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("not a video at all " * 100)
    for name in ("head.mp4", "text.mp4"):
        with pytest.raises(SourceError, match=f"{name}.*cut off"):
            list(discover(str(tmp_path / name)))
    items = list(discover(str(tmp_path), SourceConfig(videos=True)))
    assert [item.member is None for item in items] == [False] * 5 + [True, True]
    assert [isinstance(data, ReadError) for data in read(items)] == [False] * 5 + [True, True]


def test_a_video_among_photographs_is_read_only_on_request(tmp_path):
    clip(tmp_path / "clip.mp4", grey(5))
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert [item.uri.rpartition("/")[2] for item in discover(str(tmp_path))] == ["a.jpg"]
    assert len(list(discover(str(tmp_path), SourceConfig(videos=True)))) == 6
    assert len(list(discover(str(tmp_path / "*.mp4")))) == 5
    (tmp_path / "list.txt").write_text("clip.mp4\na.jpg\n")
    assert len(list(discover(str(tmp_path / "list.txt")))) == 6


CORNERS = {(0, 0): (250, 20, 20), (1, 0): (20, 250, 20), (0, 1): (20, 20, 250), (1, 1): (250, 250, 20)}  # (right, down)
ONE = 1 << 16
# The display matrices a b c d of every way in which a camera can be held, and of a front camera's mirror images.
MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


def corners(width: int = 96, height: int = 64) -> np.ndarray:
    """An image whose four corners have four colours, so that it has no symmetry."""
    image = np.zeros((height, width, 3), np.uint8)
    for (right, down), colour in CORNERS.items():
        image[height // 2 * down :, width // 2 * right :] = colour
    return image


def with_header(path: Path, matrix: tuple[float, ...] = (1, 0, 0, 1), size: tuple[int, int] | None = None) -> None:
    """Write a b c d, and the size that players show, into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, times, id, duration, layer, volume
    a, b, c, d = (round(value * ONE) for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    if size:
        data[at + 36 : at + 44] = struct.pack(">2I", size[0] * ONE, size[1] * ONE)
    path.write_bytes(data)


def first_frame(path: Path) -> np.ndarray:
    return decode_image(read(list(discover(str(path))))[0])


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_turned_or_mirrored_video_is_read_as_a_player_shows_it(tmp_path, matrix):
    """Phones store frames on their side, front cameras mirrored ones, with a display matrix in the track's header."""
    path = clip(tmp_path / "phone.mp4", [corners()] * 3)
    with_header(path, matrix)
    a, b, c, d = matrix
    shown = first_frame(path)
    height, width = shown.shape[:2]
    assert (width, height) == ((96, 64) if a else (64, 96))
    for (right, down), colour in CORNERS.items():
        p, q = 2 * right - 1, 2 * down - 1  # from the middle of the frame
        x, y = a * p + c * q, b * p + d * q
        found = shown[(height + y * height // 2) // 2, (width + x * width // 2) // 2]
        assert np.abs(found.astype(int) - colour).max() < 40, (right, down)


def test_a_matrix_that_tilts_gives_the_nearest_quarter_turn():
    image = corners()
    for degrees, turns in {20: 0, 70: 1, 110: 1, 160: 2, -80: -1}.items():
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        matrix = np.array([c * ONE, -s * ONE, 0, s * ONE, c * ONE, 0, 0, 0, 1 << 30]).astype(np.int32)
        np.testing.assert_array_equal(upright(image, matrix.tobytes()), np.rot90(image, turns))
    assert upright(image, bytes(36)).shape == image.shape  # all zero: no turn
    assert upright(image, None) is image


def write_wide(path: Path, codec: str) -> Path:
    """A frame of 72 x 64 pixels, each a third wider than high."""
    return encode(path, codec, [np.zeros((64, 72, 3), np.uint8)], Fraction(4, 3))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mkv", "libx264"),
        ("a.mp4", "libvpx-vp9"),  # pasp alone
        ("a.ts", "libx264"),  # the codec alone
        ("a.avi", "mpeg4"),
    ],
)
def test_pixels_that_are_not_square_are_stretched(tmp_path, name, codec):
    assert first_frame(write_wide(tmp_path / name, codec)).shape == (64, 96, 3)


def test_the_aspect_of_matroska_alone(tmp_path):
    """VP9 says nothing about the aspect, DisplayWidth and DisplayHeight do."""
    path = write_wide(tmp_path / "a.mkv", "libvpx-vp9")
    unknown = bytes.fromhex("e08a b08148 ba8140 54b28104 55ee8100")  # 72 x 64, unit of display: unknown
    shown = bytes.fromhex("e08e b08148 ba8140 54b08160 54ba8140")  # 72 x 64, shown as 96 x 64
    data = path.read_bytes()
    assert unknown in data
    path.write_bytes(data.replace(unknown, shown).replace(b"\xbf\x84", b"\xec\x84"))  # checksums become voids
    assert first_frame(path).shape == (64, 96, 3)


def test_the_aspect_of_a_track_header_is_that_of_the_stored_frame(tmp_path):
    """Nothing but tkhd says that 48 x 64 stored pixels are shown as 96 x 64; stretched first, then turned."""
    path = clip(tmp_path / "a.mp4", [corners(48)] * 2)
    with_header(path, size=(96, 64))
    assert first_frame(path).shape == (64, 96, 3)
    with_header(path, (0, 1, -1, 0), size=(96, 64))
    assert first_frame(path).shape == (96, 64, 3)


def test_a_boundless_aspect_meets_the_limit(tmp_path):
    """Pixels a million times as wide as high."""
    path = write_wide(tmp_path / "a.mp4", "libvpx-vp9")
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp")
    data[at + 4 : at + 12] = struct.pack(">2I", 1_000_000, 1)
    path.write_bytes(data)
    [found] = read(list(discover(str(path))))
    assert "72000000 x 64 pixels, more than inputs.max_bytes" in str(found)


def test_a_remote_video_reads_like_a_local_one(tmp_path):
    path = clip(tmp_path / "clip.mp4", grey(10))
    fsspec.filesystem("memory").pipe_file("/videos/clip.mp4", path.read_bytes())
    items = list(discover("memory://videos/clip.mp4"))
    assert [number(data) for data in read(items)] == list(range(10))


def test_large_frames_meet_the_limit(uneven):
    items = list(discover(str(uneven[0])))[:2]
    assert all(isinstance(data, ReadError) for _, data in read_items(items, max_bytes=1000))


def test_a_changed_video_is_noticed(uneven):
    path, _ = uneven
    items = list(discover(str(path)))
    clip(path, grey(12))
    assert "changed since the plan" in str(read([items[3]])[0])


def test_names_of_frames():
    assert frame_of("s3://b/a.mp4#t=1.500000&frame=45").seconds == 1.5
    assert frame_of("photos/a.jpg") is None
    assert frame_of("photos.tar#a.jpg") is None


def test_listing_needs_no_decoding(uneven):
    assert [member for member, _, size in video_frames(str(uneven[0]))][:2] == [
        "t=0.000000&frame=0",
        "t=0.040000&frame=1",
    ]
