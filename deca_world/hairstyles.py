"""The families of hair, their natural colours, and how a style is drawn for somebody of some age and sex.

A style is a family (a row of `FAMILIES`) and continuous parameters inside the family's ranges. The shares are chosen to
look plausible and to be wide, so that subjects differ; they are no statistics of a population.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deca_world.props import Colour, smoothstep

# sRGB as photographed in plain light, darkest first.
NATURAL: dict[str, Colour] = {
    "black": (0.060, 0.050, 0.048),
    "dark brown": (0.120, 0.082, 0.062),
    "brown": (0.210, 0.140, 0.098),
    "light brown": (0.340, 0.240, 0.165),
    "dark blond": (0.470, 0.360, 0.245),
    "blond": (0.660, 0.540, 0.370),
    "auburn": (0.330, 0.145, 0.085),
    "red": (0.520, 0.270, 0.130),
}
NATURAL_SHARE = (0.24, 0.20, 0.17, 0.12, 0.09, 0.08, 0.06, 0.04)
GREY: Colour = (0.66, 0.65, 0.64)

SHORTEST_DROP = 0.6  # hair that would hang less than this rests on the head

Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """Ranges of the parameters of `HairStyle`, and how likely the family is.

    share: relative frequency; male, age: change of its logarithm per standard deviation towards male and older.
    """

    share: float
    male: float = 0.0
    age: float = 0.0
    top: Range = (0.012, 0.022)
    side: Range = (0.006, 0.012)
    drop: Range = (0.0, 0.0)
    opening: Range = (60, 60)
    flare: Range = (0.0, 0.0)
    hairline: Range = (-0.03, 0.06)
    recess: Range = (0.0, 0.12)
    sideburn: Range = (-0.08, 0.12)
    nape: Range = (0.0, 0.20)
    crown: Range = (0, 0)
    fringe: Range = (0.0, 0.0)
    sweep: Range = (0.0, 0.0)
    wave: Range = (0.0, 0.0)
    curl: Range = (0.0, 0.0)
    bun: Range = (0.0, 0.0)
    density: Range = (0.9, 1.0)
    flow: tuple[str, ...] = ("radial",)


FAMILIES: dict[str, Family] = {
    "buzz": Family(0.7, 1.2, 0.0, top=(0.0025, 0.005), side=(0.0015, 0.003), recess=(0, 0.18), density=(0.35, 0.8)),
    "crop": Family(
        1.0, 1.2, 0.1, top=(0.010, 0.028), side=(0.003, 0.010), curl=(0, 0.004), flow=("radial", "back", "parted"),
    ),
    "side part": Family(
        1.0, 0.8, 0.2, top=(0.016, 0.036), side=(0.006, 0.014), sweep=(-0.12, 0.12), fringe=(0.0, 0.35),
        flow=("parted",), nape=(-0.02, 0.15),
    ),
    "swept back": Family(
        0.6, 0.6, 0.2, top=(0.014, 0.038), side=(0.005, 0.014), nape=(-0.1, 0.1), recess=(0, 0.2), flow=("back",),
    ),
    "fringe": Family(
        0.8, 0.2, -0.4, top=(0.014, 0.030), side=(0.010, 0.020), fringe=(0.40, 0.66), sweep=(-0.16, 0.16),
        sideburn=(0.0, 0.25), nape=(-0.1, 0.1), wave=(0, 0.003),
    ),
    "pixie": Family(
        0.5, -1.2, 0.3, top=(0.016, 0.034), side=(0.010, 0.018), fringe=(0.2, 0.6), sweep=(-0.3, 0.3),
        sideburn=(0.0, 0.35), nape=(-0.06, 0.1), wave=(0, 0.004), flow=("parted", "radial"),
    ),
    "bob": Family(
        0.9, -1.6, 0.1, top=(0.012, 0.026), side=(0.010, 0.022), drop=(0.75, 1.20), opening=(42, 72),
        flare=(-0.020, 0.020), fringe=(0.0, 0.66), sweep=(-0.15, 0.15), wave=(0, 0.004), flow=("parted", "radial"),
    ),
    "long straight": Family(
        1.0, -1.6, -0.4, top=(0.008, 0.020), side=(0.006, 0.016), drop=(1.30, 2.50), opening=(40, 100),
        flare=(-0.010, 0.020), fringe=(-0.6, 0.64), sweep=(-0.15, 0.15), wave=(0, 0.002), flow=("parted",),
    ),
    "long wavy": Family(
        0.9, -1.6, -0.3, top=(0.014, 0.032), side=(0.014, 0.030), drop=(1.10, 2.30), opening=(42, 90),
        flare=(0.000, 0.040), fringe=(-0.6, 0.62), sweep=(-0.2, 0.2), wave=(0.004, 0.010), curl=(0.001, 0.004),
        flow=("parted",),
    ),
    "curly": Family(
        0.6, -0.3, 0.0, top=(0.026, 0.050), side=(0.022, 0.042), drop=(0.0, 1.25), opening=(52, 80),
        flare=(0.0, 0.03), fringe=(0.0, 0.6), curl=(0.003, 0.007), wave=(0.0, 0.004),
    ),
    "afro": Family(
        0.5, 0.1, -0.1, top=(0.030, 0.075), side=(0.024, 0.070), curl=(0.003, 0.007), recess=(-0.04, 0.04),
        nape=(-0.1, 0.1), sideburn=(0.0, 0.2),
    ),
    "tied back": Family(
        0.8, -1.5, 0.1, top=(0.005, 0.012), side=(0.003, 0.007), bun=(0.024, 0.042), flow=("back",), nape=(0.1, 0.25),
        recess=(0.0, 0.08),
    ),
    "receding": Family(
        0.5, 1.4, 0.9, top=(0.006, 0.018), side=(0.005, 0.012), hairline=(0.04, 0.14), recess=(0.12, 0.30),
        density=(0.5, 0.9), flow=("back", "parted"),
    ),
    "bald": Family(
        0.4, 1.6, 0.9, top=(0.002, 0.004), side=(0.002, 0.012), crown=(60, 104), hairline=(0.0, 0.1), recess=(0.1, 0.3),
        density=(0.4, 0.95),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class HairStyle:
    """One head of hair. Lengths in metres, heights in brow-to-chin units, angles in degrees."""

    family: str
    colour: Colour
    top: float  # thickness of the hair on the crown
    side: float  # thickness at the sides
    drop: float  # the tips hang this far below the brows; 0: all hair rests on the head
    opening: float  # azimuth of the front edge of falling hair; near 100 it is tucked behind the ears
    flare: float  # distance of falling hair from the head at its tips
    hairline: float  # raises the hairline at the forehead
    recess: float  # raises it more above the temples
    sideburn: float  # lengthens the hair in front of the ears
    nape: float  # raises the lower edge at the neck
    crown: float  # polar angle of the bare crown
    fringe: float  # share of the way from hairline to brows that hair covers; <= 0: none
    sweep: float  # slope of the fringe's edge, and its side
    parting: float  # -1 (subject's right) .. 1 (left)
    wave: float  # amplitude of waves along falling hair
    curl: float  # amplitude of curls
    bun: float  # radius of a knot; 0: none
    bun_angle: float  # its polar angle at the back of the head
    density: float  # how far hair hides the scalp below it
    flow: str  # "radial" from the crown, "parted" to both sides, "back"
    seed: int  # of the strands


def sample_hair(rng: np.random.Generator, age_sex_hint: tuple[float, float] = (0.0, 0.0)) -> HairStyle:
    """A plausible head of hair for (age, sex) in standard deviations, positive older and male."""
    age, male = (float(np.clip(value, -2.5, 2.5)) for value in age_sex_hint)
    share = np.array([f.share * np.exp(f.male * male * 0.8 + f.age * age) for f in FAMILIES.values()])
    name = str(rng.choice(list(FAMILIES), p=share / share.sum()))
    family = FAMILIES[name]
    ranged = ("top", "side", "drop", "opening", "flare", "hairline", "recess", "sideburn", "nape", "crown", "fringe",
              "sweep", "wave", "curl", "bun", "density")  # fmt: skip
    values = {key: float(rng.uniform(*getattr(family, key))) for key in ranged}
    if values["drop"] < SHORTEST_DROP:
        values["drop"] = 0.0
    return HairStyle(
        family=name,
        colour=_hair_colour(rng, age),
        parting=float(rng.uniform(-0.8, 0.8)),
        bun_angle=float(rng.uniform(-10, 100)),
        flow=str(rng.choice(family.flow)),
        seed=int(rng.integers(2**31)),
        **values,
    )


def _hair_colour(rng: np.random.Generator, age: float) -> Colour:
    """A natural colour, lighter or darker by chance, with more grey the older the head."""
    base = np.array(list(NATURAL.values())[rng.choice(len(NATURAL), p=NATURAL_SHARE)])
    base = base * rng.uniform(0.8, 1.25)
    grey = smoothstep(0.6, 2.6, np.array(age + rng.normal(0, 0.6)))
    colour = base + (np.array(GREY) * rng.uniform(0.75, 1.15) - base) * grey
    red, green, blue = (float(value) for value in np.clip(colour, 0.02, 0.9))
    return red, green, blue
