"""Write frames and their times as an MP4 that browsers play."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CLOCK = 90_000  # ticks a second: every usual frame rate in whole ticks
QUALITY = 18  # constant rate factor: no visible artefacts on shaded heads
THREADS = 1  # of the encoder: workers run in parallel, and slices depend on the number


def write_clip(path: Path, frames: Iterable[NDArray[np.uint8]], times: Sequence[float], last: float = 0.04) -> int:
    """Write frames (H,W,3) RGB as H.264 in MP4, each shown from its own time on; returns their number.

    times: seconds, increasing, any spacing; last: how long the last frame is shown. An odd row or column is dropped, as
    the codec requires. The index comes first, so that a browser can play while it loads.
    """
    count = 0
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = None
        for pixels, time in zip(frames, times, strict=True):
            height, width = (side - side % 2 for side in pixels.shape[:2])
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(CLOCK), options={"crf": str(QUALITY)})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = stream.time_base = Fraction(1, CLOCK)
                stream.codec_context.thread_count = THREADS
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, CLOCK), round(time * CLOCK)
            ends = times[count + 1] if count + 1 < len(times) else time + last
            frame.duration = max(1, round(ends * CLOCK) - frame.pts)
            for packet in stream.encode(frame):
                container.mux(packet)
            count += 1
        if stream is not None:
            for packet in stream.encode(None):
                container.mux(packet)
    return count
