"""Motions for a head: expression and jaw over time, from named presets, single expressions, or codes (eq. 9, fig. 4).

A motion holds no identity: `Codes.animate` applies it to a head that keeps its shape, albedo, detail code and pose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.assets.bundle import NUM_EXP
from deca_core.codes import Codes
from deca_core.errors import DecaError

Floats = NDArray[np.float32]

EASE, HOLD = 0.6, 0.8  # seconds that a face takes to an expression and back, and that it stays there
WIDE = 0.35  # radians: a wide open mouth


class MotionError(DecaError, ValueError):
    """A motion that is not known, or whose arrays do not fit one another."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Expression and jaw over time: times (T,) seconds from 0 on, growing; exp (T,50); jaw (T,3) axis-angle."""

    times: NDArray[np.float64]
    exp: Floats
    jaw: Floats

    def __post_init__(self) -> None:
        count = len(self.times)
        if not count or self.exp.shape != (count, NUM_EXP) or self.jaw.shape != (count, 3):
            raise MotionError(
                f"{count} times, expressions {self.exp.shape} and jaws {self.jaw.shape}; expected at least one time, "
                f"(T, {NUM_EXP}) and (T, 3)"
            )
        if self.times[0] < 0 or (np.diff(self.times) <= 0).any():
            raise MotionError("the times of a motion must grow, from 0 or later on")
        if not (np.isfinite(self.exp).all() and np.isfinite(self.jaw).all() and np.isfinite(self.times).all()):
            raise MotionError("the motion holds values that are not finite")

    def __len__(self) -> int:
        return len(self.times)

    @property
    def components(self) -> int:
        """Number of leading expression components that are used at any time."""
        used = np.flatnonzero(np.abs(self.exp).max(axis=0) > 1e-6)
        return int(used[-1]) + 1 if len(used) else 0

    def on(self, source: Codes) -> Codes:
        """The codes (T) of one face (1) that moves so."""
        driver = Codes.zeros(len(self)).replace(
            exp=torch.from_numpy(self.exp), pose=torch.from_numpy(np.concatenate([self.jaw * 0, self.jaw], axis=1))
        )
        return Codes.animate(source, driver.to(source.exp.device))

    @staticmethod
    def of(codes: Codes, times: NDArray[np.float64]) -> Motion:
        """Expression and jaw of codes (T)."""
        exp, jaw = (value.float().cpu().numpy().copy() for value in (codes.exp, codes.jaw))
        return Motion(times, exp, jaw)


def eased(motion: Motion, rest: Motion, rate: float) -> Motion:
    """From `rest` to the first expression of `motion`, some time there, and back, at `rate` frames a second.

    The way is linear in the codes, its speed a smooth step.
    """
    times = np.arange(round((2 * EASE + HOLD) * rate) + 1) / rate
    share = _there_and_back(times).astype(np.float32)[:, None]
    exp = rest.exp[:1] + share * (motion.exp[:1] - rest.exp[:1])
    return Motion(times, exp, rest.jaw[:1] + share * (motion.jaw[:1] - rest.jaw[:1]))


def _there_and_back(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 at both ends, 1 in the middle."""
    rise = (times / EASE).clip(0, 1) * ((2 * EASE + HOLD - times) / EASE).clip(0, 1)
    return rise * rise * (3 - 2 * rise)


# --- presets ----------------------------------------------------------------------------------------------------------

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _blinks(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lids at 0.5 and 1.3 s: down in 80 ms, up in 160 ms, as lids do."""
    closed = np.zeros_like(times)
    for middle in (0.5, 1.3):
        off = times - middle
        closed = np.maximum(closed, 1 - np.clip(np.where(off < 0, -off / 0.08, off / 0.16), 0, 1))
    return closed * closed * (3 - 2 * closed)


def _waves(frequency: float, phase: float = 0.0) -> Curve:
    """0 to 1 and back, `frequency` times a second, calm at the ends of three seconds."""

    def curve(times: NDArray[np.float64]) -> NDArray[np.float64]:
        ends = (times / 0.3).clip(0, 1) * ((3.0 - times) / 0.3).clip(0, 1)
        return ends * (0.5 - 0.5 * np.cos(2 * np.pi * (frequency * times + phase)))

    return curve


@dataclass(frozen=True)
class _Preset:
    """Components by name with strength and course, the jaw's opening in radians likewise, and the length in seconds."""

    parts: tuple[tuple[str, float, Curve], ...]
    jaw: tuple[float, Curve] = (0.0, _there_and_back)
    seconds: float = 2 * EASE + HOLD


PRESETS: dict[str, _Preset] = {
    "smile": _Preset((("smile", 1.0, _there_and_back), ("cheek_raise", 0.5, _there_and_back))),
    "surprise": _Preset(
        (("brow_raise", 1.0, _there_and_back), ("lids_wide", 0.8, _there_and_back)), (0.2, _there_and_back)
    ),
    "frown": _Preset(
        (("brow_lower", 1.0, _there_and_back), ("brow_squeeze", 0.7, _there_and_back), ("frown", 0.4, _there_and_back))
    ),
    "blink": _Preset((("lids_close", 1.0, _blinks),), seconds=1.8),
    "jaw-open": _Preset((), (WIDE, _there_and_back)),
    "talk": _Preset(
        (
            ("lips_part", 0.5, _waves(3.4)),
            ("funnel", 0.45, _waves(1.3, 0.2)),
            ("lip_stretch", 0.4, _waves(0.9, 0.6)),
            ("brow_raise", 0.25, _waves(0.5)),
        ),
        (0.13, _waves(3.4)),
        3.0,
    ),
}


def is_preset(name: str, components: Sequence[str]) -> bool:
    """Whether a word names a motion: a preset, or one of the bundle's expression components."""
    return name in PRESETS or name in components


def preset(name: str, components: Sequence[str], rate: float) -> Motion:
    """A named motion at `rate` frames a second: a preset, or one component at full strength and back.

    components: the bundle's expression_names; FLAME's components have none, so there only what the jaw does is known.
    Raises MotionError.
    """
    made = PRESETS.get(name) or _Preset(((name, 1.0, _there_and_back),))
    times = np.arange(round(made.seconds * rate) + 1) / rate
    exp = np.zeros((len(times), NUM_EXP), np.float32)
    for part, strength, curve in made.parts:
        if part not in components:
            has = f"it has {', '.join(components)}" if components else "its expression components have no names"
            raise MotionError(
                f"the motion {name!r} needs a component {part!r} and the head has none; {has}. Drive it by HEADS#ID, "
                "an image or a video, or with jaw-open"
            )
        exp[:, components.index(part)] += strength * curve(times)
    opening, course = made.jaw
    return Motion(times, exp, np.outer(opening * course(times), [1, 0, 0]).astype(np.float32))
