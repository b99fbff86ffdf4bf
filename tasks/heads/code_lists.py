"""Codes that somebody keeps in a file: .npz arrays, or .json frames written by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import torch
from numpy.typing import NDArray

from deca_core.assets import AssetBundle
from deca_core.codes import Codes
from tasks.sources.walk import SourceError
from tasks.store.storage import Store

SUFFIXES = (".npz", ".json")


def is_code_list(uri: str) -> bool:
    return uri.lower().endswith(SUFFIXES)


def read_codes(uri: str, bundle: AssetBundle, rate: float) -> tuple[Codes, NDArray[np.float64]]:
    """Codes (T) and times (T,) out of a file; what it does not hold is zero, times follow at `rate` frames a second.

    .npz: arrays exp (T,50) and jaw (T,3) or pose (T,6), optionally times (T,) and shape, tex, cam, light, detail.
    .json: a list of frames, each with `exp`, a list or names with strengths, and optionally `jaw` (radians of opening
    or three numbers) and `time`. Raises SourceError.
    """
    folder, _, name = uri.rpartition("/")
    try:
        data = Store(folder or "/").read(name)
        arrays = _from_json(data, bundle) if uri.lower().endswith(".json") else _from_npz(data)
    except FileNotFoundError as error:
        raise SourceError(f"{uri} does not exist") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SourceError(f"{uri} is no list of codes: {error}. docs/animate.md shows one") from error
    count = len(arrays["exp"])
    codes = Codes.zeros(count)
    fields = dict(codes.items())
    for name, values in arrays.items():
        if name in fields:
            expected = tuple(fields[name].shape[1:])
            values = np.broadcast_to(values, (count, *values.shape[1:])) if len(values) == 1 else values
            if values.shape != (count, *expected):
                raise SourceError(f"{uri}: {name} has shape {values.shape}, expected {(count, *expected)}")
            if not np.isfinite(values).all():
                raise SourceError(f"{uri}: {name} holds values that are not finite")
            fields[name] = torch.from_numpy(np.array(values, np.float32))
    times = arrays.get("times", np.arange(count) / rate)
    return Codes(**fields), np.asarray(times, np.float64)


def _from_npz(data: bytes) -> dict[str, NDArray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "exp" not in arrays:
        raise ValueError(f"no array exp; it holds {', '.join(arrays) or 'nothing'}")
    if "jaw" in arrays and "pose" not in arrays:
        arrays["pose"] = np.concatenate([np.zeros_like(arrays["jaw"]), arrays["jaw"]], axis=1)
    return arrays


def _from_json(data: bytes, bundle: AssetBundle) -> dict[str, NDArray]:
    frames = json.loads(data)
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError("expected a list of frames, each an object with exp")
    exp, pose = np.zeros((len(frames), 50), np.float32), np.zeros((len(frames), 6), np.float32)
    for row, frame in enumerate(frames):
        if unknown := set(frame) - {"exp", "jaw", "time"}:
            raise ValueError(f"frame {row} has {', '.join(sorted(unknown))}; known are exp, jaw and time")
        given = frame.get("exp", {})
        if isinstance(given, dict):
            for name, strength in given.items():
                if name not in bundle.expression_names:
                    raise ValueError(f"frame {row}: the head has no expression component {name!r}")
                exp[row, bundle.expression_names.index(name)] = strength
        else:
            exp[row] = given
        jaw = frame.get("jaw", 0.0)
        pose[row, 3:] = jaw if isinstance(jaw, list) else [jaw, 0, 0]
    timed = [frame["time"] for frame in frames if "time" in frame]
    if timed and len(timed) < len(frames):
        raise ValueError(f"{len(timed)} of {len(frames)} frames have a time: give all of them one, or none")
    return {"exp": exp, "pose": pose} | ({"times": np.array(timed, np.float64)} if timed else {})
