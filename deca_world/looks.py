"""Looks: what a subject's face shows beside the head's own shape and albedo: facial hair, brows, make-up, skin.

Like hair and clothes they belong to the photograph, not to the bundle: FLAME's albedo model has no beard and no
lipstick of its own either. Shares and ranges are chosen to look plausible and to be wide, so that subjects differ; they
are no statistics of a population.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deca_world.props import Colour, smoothstep

Generator = np.random.Generator
Range = tuple[float, float]

# Of large, middle and small patches of the skin: most that they differ, share of the colour.
UNEVENNESS = (0.045, 0.032, 0.02)
# Parts of the face whose skin is darker or lighter than the rest, and how much they differ (share of the colour).
REGIONS: dict[str, float] = {
    "forehead": 0.07, "temples": 0.07, "nose": 0.07, "cheeks": 0.07, "hollows": 0.07, "round mouth": 0.11, "chin": 0.08,
    "round eyes": 0.15, "bridge": 0.05,
}  # fmt: skip
MALE = 0.0  # of the sex component: above it a subject may have a beard, below it make-up is common


@dataclass(frozen=True)
class BeardKind:
    """Ranges of the opacity of each area of facial hair, and how often men wear it."""

    share: float
    cheeks: Range = (0.0, 0.0)
    jaw: Range = (0.0, 0.0)
    chin: Range = (0.0, 0.0)
    moustache: Range = (0.0, 0.0)


BEARDS: dict[str, BeardKind] = {
    "shaven": BeardKind(0.20),
    "shadow": BeardKind(0.14, cheeks=(0.1, 0.3), jaw=(0.15, 0.35), chin=(0.15, 0.4), moustache=(0.15, 0.4)),
    "stubble": BeardKind(0.16, cheeks=(0.2, 0.5), jaw=(0.4, 0.6), chin=(0.4, 0.7), moustache=(0.4, 0.7)),
    "full": BeardKind(0.16, cheeks=(0.4, 0.75), jaw=(0.6, 0.9), chin=(0.6, 0.9), moustache=(0.6, 0.95)),
    "goatee": BeardKind(0.12, jaw=(0.0, 0.2), chin=(0.5, 0.85), moustache=(0.5, 0.9)),
    "moustache": BeardKind(0.09, moustache=(0.7, 0.95)),
    "chin": BeardKind(0.05, jaw=(0.0, 0.8), chin=(0.6, 0.9)),
}

# Lipsticks, sRGB as photographed in plain light.
LIPSTICKS: tuple[Colour, ...] = (
    (0.62, 0.10, 0.12),
    (0.50, 0.07, 0.13),
    (0.72, 0.28, 0.34),
    (0.40, 0.10, 0.16),
    (0.66, 0.36, 0.28),
    (0.78, 0.42, 0.44),
    (0.34, 0.12, 0.10),
)
# What eye shadows leave of the skin's red, green and blue.
SHADOWS: tuple[Colour, ...] = (
    (0.55, 0.50, 0.50),
    (0.70, 0.58, 0.50),
    (0.62, 0.68, 0.85),
    (0.75, 0.58, 0.70),
    (0.60, 0.68, 0.58),
    (0.85, 0.70, 0.55),
)


@dataclass(frozen=True)
class Beard:
    """Facial hair. Opacities in [0, 1]; lines in millimetres from where they usually run, positive upwards."""

    cheeks: float
    jaw: float
    chin: float
    moustache: float
    cheek_line: float
    neck_line: float
    width: float  # of the chin's and the moustache's hair, 1 is the mouth's
    colour: Colour


@dataclass(frozen=True)
class Brows:
    """Brows over the ones in the albedo, millimetres; opacities in [0, 1]."""

    bare: float  # how far those of the albedo are plucked
    density: float
    thickness: float  # half of the height at the thickest
    taper: float  # share of the thickness that is left at the outer end
    arch: float
    lift: float
    joined: float  # hair between them
    colour: Colour


@dataclass(frozen=True)
class MakeUp:
    """Paint. Opacities in [0, 1]; `shadow` is what is left of the skin's colour."""

    lipstick: Colour
    lips: float
    liner: float
    shadow: Colour
    lids: float
    blush: float


@dataclass(frozen=True)
class Skin:
    """Character of the skin: strengths, about 0 (none) to 1 (marked); signed ones are lighter below zero."""

    circles: float  # dark rings under the eyes
    circles_width: float  # mm below the lid
    sockets: float  # dark lids and inner corners
    lips: tuple[float, float, float]  # factor of the colour of the lips
    lip_line: float
    redness: float  # of nose and cheeks
    mouth_fold: float  # signed
    regions: tuple[float, ...]  # signed, darkness of each of REGIONS
    creases: float  # how dark resting wrinkles are
    lid_crease: float  # darkness of the fold above the eye
    lid_crease_height: float  # mm above the opening
    freckles: float
    spots: float
    unevenness: tuple[float, ...]  # of large, middle and small patches, share of the albedo
    symmetry: float  # how far the left half repeats on the right


@dataclass(frozen=True)
class Looks:
    """Everything on the face; `seed` of its hairs, spots and patches."""

    beard: Beard | None
    brows: Brows
    make_up: MakeUp | None
    skin: Skin
    seed: int


def sample_looks(rng: Generator, age_sex: tuple[float, float], hair: Colour) -> Looks:
    """Looks for (age, sex) in standard deviations, positive older and male, and this colour of hair."""
    age, sex = age_sex
    male = sex > MALE
    return Looks(
        beard=_beard(rng, hair) if male else None,
        brows=_brows(rng, male, hair),
        make_up=_make_up(rng) if not male and rng.uniform() < 0.85 else None,
        skin=_skin(rng, age),
        seed=int(rng.integers(2**31)),
    )


def _beard(rng: Generator, hair: Colour) -> Beard | None:
    kinds = list(BEARDS.values())
    share = np.array([kind.share for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=share / share.sum())]
    if not any(kind.moustache) and not any(kind.chin):
        return None
    areas = {name: float(rng.uniform(*getattr(kind, name))) for name in ("cheeks", "jaw", "chin", "moustache")}
    return Beard(
        **areas,
        cheek_line=float(rng.uniform(-14, 8)),
        neck_line=float(rng.uniform(-6, 4)),
        width=float(rng.uniform(0.7, 1.15)),
        colour=_near(rng, hair, 0.3, 0.06),
    )


def _brows(rng: Generator, male: bool, hair: Colour) -> Brows:
    """Men's are thicker, women's narrower and more curved."""
    return Brows(
        bare=float(rng.uniform(0.0, 0.5)),
        density=float(rng.uniform(0.4, 1.0)),
        thickness=float(rng.uniform(2.2, 5.4) if male else rng.uniform(1.4, 3.8)),
        taper=float(rng.uniform(0.2, 0.8)),
        arch=float(rng.normal(-0.2 if male else 0.3, 0.6)),
        lift=float(rng.normal(0, 0.4)),
        joined=float(smoothstep(0.75, 1.0, np.array(rng.uniform())) * rng.uniform(0.1, 0.7)) if male else 0.0,
        colour=_near(rng, tuple(0.6 * value for value in hair), 0.45, 0.03),
    )


def _make_up(rng: Generator) -> MakeUp:
    strength = rng.uniform(0.15, 1.0)
    return MakeUp(
        lipstick=_near(rng, LIPSTICKS[rng.integers(len(LIPSTICKS))], 0.15, 0.02),
        lips=float(rng.uniform(0.1, 0.85)),
        liner=float(strength * rng.uniform(0.2, 1.0)),
        shadow=SHADOWS[rng.integers(len(SHADOWS))],
        lids=float(strength * rng.uniform(0.1, 1.0)),
        blush=float(rng.uniform(0, 0.8) ** 1.5),
    )


def _skin(rng: Generator, age: float) -> Skin:
    freckled = rng.uniform() < 0.3
    red = float(rng.normal(1.0, 0.11))
    rest = red * float(rng.uniform(0.72, 1.06))
    return Skin(
        circles=float(np.clip(rng.normal(0.18 + 0.08 * age, 0.55), -0.5, 1.2)),
        circles_width=float(rng.uniform(4, 11)),
        sockets=float(rng.normal(0.05, 0.55)),
        lips=(red, rest, rest * float(rng.normal(1.0, 0.05))),
        lip_line=float(rng.uniform(0, 0.5)),
        redness=float(np.clip(rng.normal(0.05, 0.3), -0.3, 0.7)),
        mouth_fold=float(rng.normal(0.05 * age, 0.3)),
        regions=tuple(float(rng.normal(0, deviation)) for deviation in REGIONS.values()),
        creases=float(rng.uniform(0.2, 0.9)),
        lid_crease=float(rng.uniform(0, 0.4)) if rng.uniform() < 0.75 else 0.0,
        lid_crease_height=float(rng.uniform(2.5, 6.5)),
        freckles=float(rng.uniform(0.2, 1.0)) if freckled else 0.0,
        spots=float(np.clip(rng.normal(0.25 * age, 0.25), 0, 0.8)),
        unevenness=tuple(float(rng.uniform(0.2, 1.0) * most) for most in UNEVENNESS),
        symmetry=float(rng.uniform(0.3, 0.9)),
    )


def _near(rng: Generator, colour: tuple[float, ...], brightness: float, hue: float) -> Colour:
    """A colour somewhat brighter or darker, warmer or colder."""
    factor, warm = np.exp(rng.normal(0, brightness)), rng.normal(0, hue)
    red, green, blue = (
        float(v) for v in np.clip(np.array(colour) * factor * (1 + warm * np.array([1, 0, -1])), 0.02, 0.9)
    )
    return red, green, blue
