"""Does a detail code keep a person's wrinkles while somebody else's face moves them? `python -m benchmarks.animation`.

In the embedded world the displacement of every person under every expression is known. The shipped weights have next to
no displacement (deca_core/weights/README.md), so here F_d is fitted to the truth itself: one free detail code a person,
and F_d, see some people under some expressions. Then every person is animated (`Codes.animate`, eq. 9) by expressions
and jaws that were never shown, and what F_d makes of it is compared with what the world says.

    python -m benchmarks.animation --picture docs/animate/transfer.jpg
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.sheets import FACE_SCALE, PANEL, Studio
from deca_core.assets import procedural_head
from deca_core.codes import NUM_DETAIL, Codes
from deca_core.detail import START, DetailDecoder
from deca_world.scene import MOODS, sample_expression
from deca_world.subject import Subject
from deca_world.subject import subject as sample_person
from deca_world.wrinkles import WrinkleModel
from tasks.models.loading import GeometryModel
from tasks.training.inputs import arithmetic

RATE = 3e-3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STILL = 5e-6  # metres: texels whose truth moves less over the drivers are statics
GAP, HEADER = 4, 22  # pixels of the picture
SHOWN = ("smile", "brow raise", "frown", "disgust")

Maps = NDArray[np.float32]


class Truth:
    """Displacement of people under expressions, (people, expressions, texels) on the face mask."""

    def __init__(self, people: int, expressions: int, seed: int) -> None:
        self.bundle = procedural_head()
        self.model = WrinkleModel(self.bundle)
        self.people: list[Subject] = [sample_person(seed, index) for index in range(people)]
        rng = np.random.default_rng(seed)
        drawn = [sample_expression(rng, self.bundle.expression_names) for _ in range(expressions)]
        self.exp = np.stack([exp for exp, _ in drawn])
        self.jaw = np.array([[jaw, 0, 0] for _, jaw in drawn], np.float32)
        self.mask = self.bundle.face_mask > 0.5
        self.maps = np.stack(
            [
                np.stack([self.model.displacement(one, exp, jaw) for exp, jaw in zip(self.exp, self.jaw, strict=True)])
                for one in self.people
            ]
        )

    def codes(self, detail: Tensor) -> Codes:
        """Everybody with an expression of the first shot: what sources are before somebody drives them."""
        count = len(self.people)
        shape, tex = (
            torch.from_numpy(np.stack([getattr(one, name) for one in self.people])) for name in ("shape", "tex")
        )
        cam = torch.tensor([[8.0, 0.0, 0.0]]).expand(count, -1)
        return Codes.zeros(count).replace(shape=shape, tex=tex, cam=cam, detail=detail)

    def drivers(self, chosen: range) -> Codes:
        pose = torch.zeros(len(chosen), 6)
        pose[:, 3:] = torch.from_numpy(self.jaw[chosen])
        return Codes.zeros(len(chosen)).replace(exp=torch.from_numpy(self.exp[chosen]), pose=pose)


def fit(truth: Truth, shown: range, steps: int, batch: int, seed: int) -> tuple[DetailDecoder, Tensor]:
    """(F_d, a detail code for each person), on the CPU, fitted to the displacement under the expressions `shown`.

    The loss is the squared error over the variance of the truth: 1 is as good as its mean.
    """
    torch.manual_seed(seed)
    decoder = DetailDecoder().train().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    detail = torch.randn(len(truth.people), NUM_DETAIL, device=DEVICE, requires_grad=True)
    ends = list(decoder.last.parameters())
    others = [value for value in decoder.parameters() if all(value is not end for end in ends)]
    optimiser = torch.optim.Adam([{"params": [*others, detail]}, {"params": ends}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [RATE, RATE * START], total_steps=steps)
    mask, spread = torch.from_numpy(truth.mask).to(DEVICE), float(truth.maps[:, shown][..., truth.mask].std())
    exp, jaw = (torch.from_numpy(values).to(DEVICE) for values in (truth.exp, truth.jaw))
    rng = np.random.default_rng(seed)
    half = arithmetic("auto", DEVICE) == "bf16"  # made up, it takes many times as long
    for step in range(steps):
        who, how = rng.integers(len(truth.people), size=batch), rng.choice(shown, batch)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            made = decoder(torch.cat([jaw[how], exp[how], detail[who]], dim=1))
        wanted = torch.from_numpy(truth.maps[who, how]).to(DEVICE)
        loss = ((made.float()[:, 0] - wanted)[:, mask] / spread).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if not (step + 1) % max(1, steps // 10):
            print(f"step {step + 1}: {float(loss.detach()):.3f} of the variance left", flush=True)
    return decoder.eval().cpu(), detail.detach().cpu()


@torch.inference_mode()
def animate(truth: Truth, decoder: DetailDecoder, detail: Tensor, chosen: range) -> Maps:
    """(people, drivers, 256, 256): F_d for everybody, driven by each of the `chosen` expressions."""
    model = GeometryModel(truth.bundle)
    sources, drivers, made = truth.codes(detail), truth.drivers(chosen), []
    for index in range(len(truth.people)):
        codes = model.animate(sources[index : index + 1], drivers)
        made.append(decoder(torch.cat([codes.jaw, codes.exp, codes.detail], dim=1))[:, 0].numpy())
    return np.stack(made)


def pearson(one: NDArray, other: NDArray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def figures(truth: Truth, made: Maps, chosen: range) -> dict[str, float]:
    """What statics and wrinkles come to, on the face mask, over all people and unseen drivers."""
    true, found = truth.maps[:, chosen][..., truth.mask], made[..., truth.mask]  # (P, D, N)
    count = len(true)
    neutral = np.stack(
        [truth.model.displacement(one, np.zeros(50, np.float32), np.zeros(3, np.float32)) for one in truth.people]
    )[:, truth.mask]
    moves = true.std(axis=1) > STILL
    others = [(one + 1) % count for one in range(count)]
    pairs = [(person, driver) for person in range(count) for driver in range(len(chosen))]
    return {
        "displacement under an unseen driver against the truth, r": mean(
            pearson(found[p, d], true[p, d]) for p, d in pairs
        ),
        "the same, of the neutral face's true map (nothing moves), r": mean(
            pearson(neutral[p], true[p, d]) for p, d in pairs
        ),
        "the same, of the next person's true map (somebody else's wrinkles), r": mean(
            pearson(true[others[p], d], true[p, d]) for p, d in pairs
        ),
        "statics: mean over the drivers against the true mean, r": mean(
            pearson(found[p].mean(0), true[p].mean(0)) for p in range(count)
        ),
        "statics: change over the drivers where the truth is still, um": 1e6
        * mean(found[p].std(0)[~moves[p]].mean() for p in range(count)),
        "wrinkles: change over the drivers where the truth moves, um (truth: see next)": 1e6
        * mean(found[p].std(0)[moves[p]].mean() for p in range(count)),
        "wrinkles: the true change there, um": 1e6 * mean(true[p].std(0)[moves[p]].mean() for p in range(count)),
        "wrinkles: change from the person's mean against the true change, r": mean(
            pearson((found[p, d] - found[p].mean(0))[moves[p]], (true[p, d] - true[p].mean(0))[moves[p]])
            for p, d in pairs
        ),
    }


def mean(values: object) -> float:
    return float(np.mean(list(values)))  # type: ignore[call-overload]


@torch.inference_mode()
def picture(truth: Truth, decoder: DetailDecoder, detail: Tensor, people: int = 2) -> NDArray[np.uint8]:
    """Clay heads: people down, moods across; the truth above what F_d makes."""
    studio, names = Studio(truth.bundle), truth.bundle.expression_names
    sheet = Image.new("RGB", ((len(SHOWN) + 1) * (PANEL + GAP), HEADER + 2 * people * (PANEL + GAP)), (24, 24, 28))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for column, mood in enumerate((None, *SHOWN)):
        exp, jaw = np.zeros(50, np.float32), 0.0
        if mood is not None:
            _, parts, (_, jaw) = MOODS[mood]
            for name, amount in parts.items():
                exp[names.index(name)] = amount
        draw.text((column * (PANEL + GAP) + 6, 3), mood or "neutral", fill=(220, 220, 220), font=font)
        for index in range(people):
            person, opening = truth.people[index], np.array([jaw, 0, 0], np.float32)
            true = truth.model.displacement(person, exp, opening)
            code = torch.cat([torch.from_numpy(opening), torch.from_numpy(exp), detail[index]])
            made = np.where(truth.bundle.face_mask > 0, decoder(code[None])[0, 0].numpy(), 0).astype(np.float32)
            for row, displacement in enumerate((true, made)):
                panel = studio.draw(person.shape, exp, jaw=jaw, displacement=displacement, clay=True, scale=FACE_SCALE)
                at = (column * (PANEL + GAP), HEADER + (2 * index + row) * (PANEL + GAP))
                sheet.paste(Image.fromarray(panel), at)
                if column == 0:
                    draw.text((6, at[1] + PANEL - 20), ("truth", "animated")[row], fill=(30, 30, 30), font=font)
    return np.asarray(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--shown", type=int, default=40, help="expressions that F_d is fitted to")
    parser.add_argument("--unseen", type=int, default=12, help="expressions that drive afterwards")
    parser.add_argument("--steps", type=int, default=3600, help="a fifth of a second of one core each")
    parser.add_argument("--batch", type=int, default=4, help="maps in a step")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="where to draw the truth above the animation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth = Truth(options.people, options.shown + options.unseen, options.seed)
    shown, unseen = range(options.shown), range(options.shown, options.shown + options.unseen)
    started = time.process_time()
    decoder, detail = fit(truth, shown, options.steps, options.batch, options.seed)
    print(f"{options.people} people, {options.steps} steps, {time.process_time() - started:.0f} s of one core")
    for name, value in figures(truth, animate(truth, decoder, detail, unseen), unseen).items():
        print(f"{value:8.3f}  {name}")
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(truth, decoder, detail)).save(options.picture, quality=82)
        print(f"{options.picture}: {options.picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
