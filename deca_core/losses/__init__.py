"""The losses of the paper (sections 4.1 and 4.2), one function each, and the recipes that weight them."""

from deca_core.losses.detail import erode, face_patch, soft_symmetry
from deca_core.losses.fits import NUM_FITTED, fit_distance, fitted_vector, gram
from deca_core.losses.landmarks import eye_closure, landmark, landmark_weights, lip_distance
from deca_core.losses.mrf import id_mrf, mrf_distance
from deca_core.losses.photometric import identity, photometric
from deca_core.losses.recipe import CoarseWeights, DetailWeights, Recipe, pretraining, recipe
from deca_core.losses.regularizers import code_energy, displacement_size, light_colour, shading_smoothness
from deca_core.losses.swap import swap_order

__all__ = [
    "NUM_FITTED",
    "CoarseWeights",
    "DetailWeights",
    "Recipe",
    "code_energy",
    "displacement_size",
    "erode",
    "eye_closure",
    "face_patch",
    "fit_distance",
    "fitted_vector",
    "gram",
    "id_mrf",
    "identity",
    "landmark",
    "landmark_weights",
    "light_colour",
    "lip_distance",
    "mrf_distance",
    "photometric",
    "pretraining",
    "recipe",
    "shading_smoothness",
    "soft_symmetry",
    "swap_order",
]
