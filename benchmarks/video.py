"""Jitter and blinks of a clip of one head with known truth: `python -m benchmarks.video`.

Five seconds of the embedded world at 25 frames a second: the head turns and nods, smiles, talks and blinks; the
sensor's noise is another one in every frame. The clip is written as H.264, reconstructed as any video is (detector,
landmarks, shipped weights) and followed; then the rows are smoothed in several ways. Mean acceleration of the face's
vertices says how much a head jitters; blink amplitude is how far the lids come down at each of the true blinks.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from deca_core.assets import procedural_head
from deca_core.codes import Codes
from deca_core.flame import FLAME
from deca_core.smoothing import LIDS, Eyelids, crop_camera, local_fit, smooth_codes, source_camera
from deca_world import Limits, World
from deca_world.scene import Shot, axis_angle
from pipelines.reconstruct import reconstruct
from schemas.parquet import fixed_values
from schemas.reconstruct import ReconstructConfig
from tasks.heads.clips import write_clip
from tasks.heads.consensus import shape_metric
from tasks.heads.selection import codes_of, read_heads
from tasks.heads.track_records import read_track
from tasks.heads.tracks import share

Floats = NDArray[np.float64]

RATE, SECONDS = 25, 5.0
# Middle and length of each blink, seconds: from open to open people take 0.1 to 0.4.
BLINKS = ((0.7, 0.26), (1.9, 0.16), (2.6, 0.32), (3.9, 0.16), (4.4, 0.26))
AROUND = (0.26, 0.8)  # seconds from a blink's middle in which the eye is as open as usual
LIPS, TALK = ((61, 67), (62, 66), (63, 65)), (2.8, 4.6)
FACE = 0.5  # vertices whose texels count half in the face mask are the face
ONE_EURO = (1.0, 0.3)  # smallest cutoff, Hz, and its growth with speed, as its authors start


def performance(time: float, names: tuple[str, ...]) -> tuple[NDArray, float, NDArray]:
    """(expression (50,), jaw in radians, head rotation (3,)) at a moment: smooth but for the blinks."""
    exp = np.zeros(50, np.float32)

    def add(name: str, amount: float) -> None:
        exp[names.index(name)] += amount

    smile = 0.5 - 0.5 * np.cos(2 * np.pi * np.clip((time - 0.5) / 2.2, 0, 1))
    for name, amount in {"smile": 0.8, "cheek_raise": 0.4}.items():
        add(name, amount * smile)
    brows = 0.5 - 0.5 * np.cos(2 * np.pi * np.clip((time - 3.2) / 1.5, 0, 1))
    add("brow_raise", 0.8 * brows)
    talking = np.clip((time - 2.6) / 0.3, 0, 1) * np.clip((4.8 - time) / 0.3, 0, 1)
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 3.2 * time)  # 3.2 a second
    add("lips_part", 0.5 * talking * syllables)
    add("funnel", 0.3 * talking * (0.5 - 0.5 * np.cos(2 * np.pi * 1.3 * time)))
    lids = max(0.5 + 0.5 * np.cos(2 * np.pi * np.clip((time - at) / length, -0.5, 0.5)) for at, length in BLINKS)
    add("lids_close", lids)
    yaw, pitch = 14 * np.sin(2 * np.pi * time / 4.1), 5 * np.sin(2 * np.pi * time / 2.9)
    return exp, float(0.12 * talking * syllables), axis_angle(*np.radians([2 * np.sin(time), pitch, yaw]))


def film(folder: Path, seed: int, index: int, size: int) -> tuple[Path, Codes, Floats]:
    """(the clip, its true codes, the times)."""
    world = World(procedural_head())
    person = world.subject(seed, index)
    still = world.shot(person, 0, Limits(yaw=(0, 5), occluders=False))
    lens = dataclasses.replace(still.lens, blur=0.3, shrink=1.0, noise=0.01)
    times = np.arange(round(RATE * SECONDS)) / RATE
    pictures, codes = [], []
    for number, time in enumerate(times):
        exp, jaw, head = performance(float(time), world.bundle.expression_names)
        changes = {"exp": exp, "jaw": np.array([jaw, 0, 0], np.float32), "head": head, "body": head * 0}
        changes |= {"lens": dataclasses.replace(lens, seed=number), "scale": 6.0, "offset": (0.0, 0.0)}
        shot: Shot = dataclasses.replace(still, image=number, **changes)
        taken = world.photograph(person, shot, size)
        pictures.append(taken.image)
        codes.append(taken.codes)
    path = folder / "clip.mp4"
    write_clip(path, pictures, times.tolist())
    return path, Codes.cat(codes), times


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is measured of one way to smooth."""

    acceleration: float  # m/s^2, mean over face vertices and frames
    motion_mm: float  # mean distance of the face's vertices from the true motion; what is constant is taken out
    lips_mm: float  # standard deviation of the lips' distance while talking
    blinks_mm: Floats  # amplitude of each true blink


class Judge:
    """Measures codes of the clip's frames."""

    def __init__(self, truth: Codes, times: Floats) -> None:
        bundle = procedural_head()
        self.flame, self.times, self.truth = FLAME(bundle), times, truth
        u, v = (bundle.uv * 255).round().astype(int).T
        kept = bundle.face_mask[255 - v, u] > FACE
        self.face = np.unique(bundle.faces[np.isin(bundle.uv_faces, np.flatnonzero(kept)).all(1)])

    @torch.inference_mode()
    def vertices(self, codes: Codes) -> Floats:
        return self.flame(codes.shape, codes.exp, codes.pose).vertices[:, self.face].double().numpy()

    @torch.inference_mode()
    def opening(self, codes: Codes, pairs: Sequence[tuple[int, int]]) -> Floats:
        """Mean distance (T,) between the landmarks of each pair, mm."""
        points = self.flame(codes.shape, codes.exp, codes.pose).landmarks3d
        gaps = torch.stack([(points[:, upper] - points[:, lower]).norm(dim=-1) for upper, lower in pairs])
        return 1000 * gaps.mean(0).double().numpy()

    def measure(self, codes: Codes) -> Figures:
        vertices = self.vertices(codes)
        acceleration = np.linalg.norm(np.diff(vertices, 2, axis=0), axis=2).mean() * RATE**2
        own = self.truth.replace(exp=codes.exp, pose=codes.pose)  # the true head with these motions
        off = self.vertices(own) - self.vertices(self.truth)
        error = np.linalg.norm(off - off.mean(0), axis=2).mean() * 1000
        lips = self.opening(codes, LIPS)[(self.times > TALK[0]) & (self.times < TALK[1])].std()
        opening, amplitudes = self.opening(codes, [pair for eye in LIDS for pair in eye]), []
        for middle, _ in BLINKS:
            away = np.abs(self.times - middle)
            usual = np.median(opening[(away > AROUND[0]) & (away < AROUND[1])])
            amplitudes.append(usual - opening[away <= 1.5 / RATE].min())
        return Figures(float(acceleration), float(error), float(lips), np.array(amplitudes))


def one_euro(times: Floats, values: Floats) -> Floats:
    """Casiez et al. 2012: an exponential mean whose cutoff grows with speed; causal."""
    lowest, growth = ONE_EURO

    def share(cutoff: Floats | float, step: float) -> Floats | float:
        return 1 / (1 + 1 / (2 * np.pi * cutoff * step))

    out, speed = values.copy(), np.zeros(values.shape[1])
    for now in range(1, len(values)):
        step = times[now] - times[now - 1]
        speed = speed + share(1.0, step) * ((values[now] - out[now - 1]) / step - speed)
        out[now] = out[now - 1] + share(lowest + growth * np.abs(speed), step) * (values[now] - out[now - 1])
    return out


def everything(codes: Codes, transforms: Floats, smooth: Callable[[Floats], Floats]) -> Codes:
    """Expression, pose, camera and light through one filter, blinks and all."""
    found = {name: smooth(getattr(codes, name).flatten(1).double().numpy()) for name in ("exp", "pose", "light")}
    seen = smooth(source_camera(codes.cam.double().numpy(), transforms))
    found["cam"] = crop_camera(seen, transforms)
    shaped = {name: torch.from_numpy(value).float() for name, value in found.items()}
    return codes.replace(**shaped | {"light": shaped["light"].reshape(-1, 9, 3)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=288, help="pixels on a side")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--person", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for clip and rows; default: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / "truth.npz"
        if not saved.exists():
            _, truth, times = film(folder, options.seed, options.person, options.size)
            np.savez(saved, times=times, **{name: value.numpy() for name, value in truth.items()})
        with np.load(saved, allow_pickle=False) as arrays:
            times = arrays["times"]
            truth = Codes(**{name: torch.from_numpy(arrays[name]) for name, _ in Codes.zeros().items()})
        done = ReconstructConfig.model_validate(
            {"source": str(folder / "clip.mp4"), "dest": str(folder / "heads"), "ray": {"workers": 0}}
        )
        summary = reconstruct(done)
        heads, track = read_heads(str(folder / "heads")), read_track(str(folder / "heads"))
        print(f"{summary.images} frames, {summary.faces} faces, {summary.tracks} tracks")
    compare(heads.table, codes_of(track), truth, times)


def compare(table: pa.Table, written: Codes, truth: Codes, times: Floats) -> None:
    """Print the figures of every way to smooth the rows of `table`; written: the codes in tracks/."""
    codes = codes_of(table)
    order = np.argsort(table["frame"].to_numpy())
    rows = table["frame"].to_numpy()[order]
    codes, truth, times = codes[order], truth[rows], times[rows]
    transforms = fixed_values(table, "crop_transform").astype(np.float64)[order]
    bundle = procedural_head()
    lids, judge = Eyelids.of(FLAME(bundle)), Judge(truth, times)
    shared = share(codes, shape_metric(bundle))
    ways = {
        "truth": truth,
        "per frame": codes,
        "one head": shared,
        "tracks/ as written": written,
        "One Euro": everything(shared, transforms, lambda values: one_euro(times, values)),
    }
    for window in (0.2, 0.28, 0.36, 0.44):
        ways[f"parabola {window} s"] = everything(shared, transforms, lambda v, w=window: local_fit(times, v, w))
        ways[f"parabola {window} s, lids apart"] = smooth_codes(times, shared, transforms, lids, window)
    points = fixed_values(table, "shape").astype(np.float64)[order] @ shape_metric(bundle)
    print(
        f"shape code between frames: {np.linalg.norm(np.diff(points, axis=0), axis=1).mean():.2f} mm, largest "
        f"{np.linalg.norm(np.diff(points, axis=0), axis=1).max():.2f}"
    )
    base = judge.measure(codes)
    print(f"{'':32} m/s^2  of per-frame  motion mm  lips mm  blink mm  of per-frame (each)")
    for name, own in ways.items():
        found = judge.measure(own)
        share_kept = found.blinks_mm / base.blinks_mm
        each = " ".join(f"{value:.2f}" for value in share_kept)
        print(
            f"{name:32} {found.acceleration:5.2f}  {found.acceleration / base.acceleration:12.2f}"
            f"  {found.motion_mm:9.3f}  {found.lips_mm:7.2f}  {found.blinks_mm.mean():8.2f}"
            f"  {share_kept.mean():.2f} ({each})"
        )


if __name__ == "__main__":
    main()
