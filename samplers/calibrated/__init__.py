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
    predictor.py, train_amed.py    the network of AMED, which sees each image, and its training

Modules are imported one by one, since solvers use `tuning`, and recipes use the solvers.
"""
