"""Fit plans and predictors to the demo model, for each number of evaluations a file in demo/plans.

    .host/venv/bin/python demo/learn.py                       # all; files that are there already are left alone
    .host/venv/bin/python demo/learn.py --only calibrated --evaluations 5 6
    .host/venv/bin/python demo/learn.py --refine              # trains the predictors that were only fitted

`calibrated-N` is a calibrated plan. `amed-BASE-N` is a predictor for the inserted levels of AMED over a base solver.
Its numbers are fitted to the last sample first, the same for all images; over ipndm_v, euler and dpm_2s they are part
of a calibrated plan. Then it is trained image by image, which stays if it helps images that nothing was fitted to. No
prompt and no seed is one of those on which bench/quality.py reports.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tools")) if path not in sys.path]

import torch  # noqa: E402
from host import import_comfyui, import_pack  # noqa: E402

PROMPTS = (
    "cat face", "red apple", "penguin", "hamburger", "grinning face", "tulip", "octopus", "slice of pizza",
    "fox", "lion", "panda", "bear", "monkey face", "chicken", "snail", "butterfly",
    "grapes", "pineapple", "carrot", "bread", "cheese wedge", "cookie", "robot", "alien",
    "red heart", "winking face", "smiling face with heart eyes", "sunflower", "rabbit face", "tiger face",
    "evergreen tree", "four leaf clover",
)  # fmt: skip

EVALUATIONS = (5, 6, 8, 4, 10, 12)
CALIBRATED = "ipndm_v"  # the base of the calibrated plans
BASES = (CALIBRATED, "dpmpp_2m", "dpm_2m", "ipndm", "amed", "euler", "amed_dpm_2s", "dpmpp_3m", "dpm_3m")
PLANNED = ("euler", "amed_dpm_2s")  # bases that inserted levels alone help too little: they get a plan of their own
PAIRED = ("amed", "amed_dpm_2s")  # an odd number of evaluations is one more without the first (AFS)
GUIDANCE = 3.0
SEED, SAMPLES = 10_000, 16  # of the fit
SEED_TRAINED, HELD, BATCH, BATCHES = 20_000, 32, 16, 8  # of the training
TEACHER = 30  # steps in training, which needs them for every image; the fit has 50


class Learning:
    """The demo model with its prompts."""

    def __init__(self, pack: Any, options: argparse.Namespace):
        from demo.model import load

        patcher, words = load(ROOT / "demo" / "weights.safetensors")
        self.host, self.calibrated_plans, self.options = pack.nodes.host, pack.samplers.calibrated, options
        self.files, self.levels = pack.samplers.calibrated.file, pack.samplers.levels
        positive = [self._entry(words, prompt) for prompt in PROMPTS]
        latent = {"samples": torch.zeros(1, 12, 16, 16)}
        self.session = self.host.session.Session(patcher, positive, [self._entry(words, "")], GUIDANCE, latent)

    @staticmethod
    def _entry(words: Any, prompt: str) -> list[Any]:
        embedding = words.encode(prompt)[0]
        return [embedding[:, None], {"pooled_output": embedding}]

    def path(self, name: str) -> Path:
        return self.options.out / f"{name}.safetensors"

    def save(self, plan: Any, name: str) -> None:
        self.host.plan_files.keep(plan, lambda: plan.save(self.path(name)))

    def calibrated(self, evaluations: int, **options: Any) -> Any:
        calibration = self.host.calibration.Calibration(
            self.session,
            evaluations=evaluations,
            seed=SEED,
            samples=self.options.samples,
            rounds=self.options.rounds,
            **options,
        )
        for _ in calibration:
            pass
        return calibration.plan

    def amed(self, base: str, evaluations: int) -> Any:
        """The numbers of the inserted levels, and a predictor that gives them to every image."""
        if base == CALIBRATED:
            plan = self.files.load(self.path(f"calibrated-{evaluations}"))
        else:
            afs = base in PAIRED and evaluations % 2 == 1
            fitted = {} if base in PLANNED else {"parameters": ("level", "scale_dir", "scale_time"), "inserted": True}
            plan = self.calibrated(evaluations, bases=(base,), afs=afs, **fitted)
        levels = self.levels.read_levels(plan.recipe.sigmas, plan.recipe.flow)
        torch.manual_seed(SEED)
        predictor = self.calibrated_plans.predictor.Predictor.giving(levels, plan.recipe.tunings, 0.05, 0.05)
        return dataclasses.replace(plan, predictor=predictor.eval().requires_grad_(False))

    def trained(self, plan: Any) -> Any:
        """Trained image by image; as it was, where that does not help images that it was not trained on."""
        training = self.host.training.Training(
            self.session,
            evaluations=plan.recipe.nfe,
            start=plan,
            seed=SEED_TRAINED,
            iterations=self.options.train,
            batch=BATCH,
            samples=HELD,
            teacher_steps=TEACHER,
        )
        for _ in training:
            pass
        trained = training.plan
        kept = ("teacher", "seeds", "iterations", "error_before", "error_after", "improved")
        found = trained.about.as_dict()
        about = dataclasses.replace(plan.about, trained={name: found[name] for name in kept})
        return dataclasses.replace(trained, about=about)

    def learn(self, name: str) -> Any | None:
        """What is to be written to a file; None if there is nothing to do."""
        path = self.path(name)
        kind, *base, evaluations = name.split("-")
        if self.options.refine:
            plan = self.files.load(path) if path.exists() and kind == "amed" else None
            return self.trained(plan) if plan is not None and not plan.about.trained else None
        if path.exists():
            return None
        if kind == "calibrated":
            return self.calibrated(int(evaluations))
        plan = self.amed(*base, int(evaluations))
        return self.trained(plan) if self.options.train else plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("calibrated", "amed"))
    parser.add_argument("--refine", action="store_true", help="train predictors that are there and were only fitted")
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--rounds", type=int, default=4, help="of a fit, at most (%(default)s)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="that are fitted to, and as many to check with")
    parser.add_argument("--train", type=int, default=BATCHES, help="batches of a training (%(default)s); 0: none")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "plans")
    options = parser.parse_args()
    torch.set_num_threads(1)
    import_comfyui()
    learning = Learning(import_pack(), options)
    names = [] if options.only == "amed" else [f"calibrated-{n}" for n in options.evaluations]
    if options.only != "calibrated":
        names += [f"amed-{base}-{n}" for base in options.bases for n in options.evaluations]
    for name in names:
        start = time.monotonic()
        plan = learning.learn(name)
        if plan is None:
            continue
        learning.save(plan, name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{name}: {errors(plan.about)} in {time.monotonic() - start:.0f} s; peak {peak:.2f} GB", flush=True)


def errors(about: Any) -> str:
    fitted = f"{about.error_before:.4f} ({about.baseline}) -> {about.error_after:.4f}"
    if not about.trained:
        return fitted
    trained = about.trained
    return f"{fitted}; trained: {trained['error_before']:.4f} -> {trained['error_after']:.4f}"


if __name__ == "__main__":
    main()
