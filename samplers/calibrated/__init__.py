"""Calibrated plans: a solver whose levels and parameters are fitted to one model, so that a few evaluations are enough.

    plan.py         `CalibratedPlan`, what a user makes, saves and follows; `load` and `parse` read one
    about.py        what it says of itself: the model, the guidance, what it gained
    file.py         the container: safetensors with JSON in its metadata
    recipe.py       `Recipe`, its numbers: a base solver, levels, a `Tuning` for each; `tuning.py` puts them into stages
    published.py    those that authors have published
    fit.py          `calibrate`: screening of plain samplers, training, validation
    objective.py    what is minimised: residuals, weights, the error of the last sample
    parameters.py   what can be fitted
    gauss_newton.py, bfgs.py    the two ways to minimise: by differences of runs, by gradients
    predictor.py, pairs.py, train_amed.py    the network of AMED, a run with points of its own for each image, training

The solvers know nothing of this room.
"""

from .about import About
from .file import FileError
from .fit import DEFAULT_BASES, DEFAULT_PARAMETERS, Progress, calibrate, plain_recipes
from .objective import Differentiable, DifferentiableGoal, Goal, geometric_mean, rmse
from .parameters import Parameter
from .plan import CalibratedPlan, load, parse
from .predictor import Predictor
from .published import PUBLISHED
from .recipe import Recipe
from .train_amed import Trainer
from .tuning import PLAIN, Tuning

__all__ = [
    "DEFAULT_BASES",
    "DEFAULT_PARAMETERS",
    "PLAIN",
    "PUBLISHED",
    "About",
    "CalibratedPlan",
    "Differentiable",
    "DifferentiableGoal",
    "FileError",
    "Goal",
    "Parameter",
    "Predictor",
    "Progress",
    "Recipe",
    "Trainer",
    "Tuning",
    "calibrate",
    "geometric_mean",
    "load",
    "parse",
    "plain_recipes",
    "rmse",
]
