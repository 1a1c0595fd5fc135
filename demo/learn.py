"""Fit plans and predictors to the demo model, for each number of evaluations a file in demo/plans.

    .host/venv/bin/python demo/learn.py                       # all; files that are there already are left alone
    .host/venv/bin/python demo/learn.py --only calibrated --evaluations 5 6

`calibrated-N` is a calibrated plan. `amed-BASE-N` is a predictor for the inserted levels of AMED over a base solver,
its numbers fitted to the last sample. Prompts and seeds are none of those on which bench/quality.py reports.
"""

from __future__ import annotations

import argparse
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

EVALUATIONS = (4, 5, 6, 8, 10, 12)
BASES = ("amed", "dpmpp_2m", "dpm_2m", "ipndm", "euler", "amed_dpm_2s", "dpmpp_3m", "dpm_3m")
GUIDANCE = 3.0
SEED = 10_000
SAMPLES = 16


class Learning:
    """The demo model with its prompts."""

    def __init__(self, tuning: Any, samples: int):
        from demo.model import load

        patcher, words = load(ROOT / "demo" / "weights.safetensors")
        self.tuning, self.samples = tuning, samples
        positive = [self._entry(words, prompt) for prompt in PROMPTS]
        latent = {"samples": torch.zeros(1, 12, 16, 16)}
        self.session = tuning.Session(patcher, positive, [self._entry(words, "")], GUIDANCE, latent)

    @staticmethod
    def _entry(words: Any, prompt: str) -> list[Any]:
        embedding = words.encode(prompt)[0]
        return [embedding[:, None], {"pooled_output": embedding}]

    def calibration(self, evaluations: int, **options: Any) -> Any:
        calibration = self.tuning.Calibration(
            self.session, evaluations=evaluations, seed=SEED, samples=self.samples, **options
        )
        for _ in calibration:
            pass
        return calibration

    def calibrated(self, evaluations: int, rounds: int) -> Any:
        return self.calibration(evaluations, rounds=rounds).learned

    def amed(self, base: str, evaluations: int, rounds: int) -> Any:
        """The numbers of the inserted levels, and a predictor that gives them."""
        free = ("level", "scale_dir", "scale_time")
        found = self.calibration(evaluations, bases=(base,), free=free, rounds=rounds, inserted=True).learned
        largest = [max(abs(t[k] - 1) for t in found.recipe.tunings) for k in range(2)]
        predictor = self.tuning.Predictor(*(min(0.99, max(0.05, 1.5 * size)) for size in largest))
        predictor.start_at(self.tuning.read_levels(found.recipe.sigmas, found.recipe.flow), found.recipe.tunings)
        return self.tuning.Learned(found.recipe, predictor.eval().requires_grad_(False), found.about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("calibrated", "amed"))
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="that are fitted to, and as many to check with")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "plans")
    o = parser.parse_args()
    torch.set_num_threads(1)
    import_comfyui()
    learning = Learning(import_pack().nodes.tuning, o.samples)
    wanted = [] if o.only == "amed" else [(f"calibrated-{n}", "", n) for n in o.evaluations]
    if o.only != "calibrated":
        wanted += [(f"amed-{base}-{n}", base, n) for base in o.bases for n in o.evaluations]
    for name, base, evaluations in wanted:
        path = o.out / f"{name}.safetensors"
        if path.exists():
            continue
        start = time.monotonic()
        learned = learning.amed(base, evaluations, o.rounds) if base else learning.calibrated(evaluations, o.rounds)
        learned.save(path)
        about = learned.about
        print(
            f"{name}: {about['error_before']:.4f} ({about['baseline']}) -> {about['error_after']:.4f} in "
            f"{time.monotonic() - start:.0f} s; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
