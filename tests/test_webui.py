"""The contract with AUTOMATIC1111, Forge and reForge, against a host of our own writing with their interfaces.

`make test-webui` runs the same assertions in a real one.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host import ROOT
from k_diffusion_package import k_diffusion

HOST = Path(__file__).parent / "webui" / "host"
OURS = ("modules", "gradio", "fewstep")
VARIANTS = ("a1111", "forge", "old")
MODULES = ("scripts", "script_callbacks", "sd_samplers", "sd_samplers_common", "sd_samplers_kdiffusion", "shared")

spec = importlib.util.spec_from_file_location("webui_contract", Path(__file__).parent / "webui" / "contract.py")
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)


class Host(SimpleNamespace):
    """See `contract`."""

    root = ROOT

    @property
    def is_sd15(self):
        return self.shared.sd_model.parameterization == "eps"

    def load(self):
        self.scripts.reload(ROOT)

    def processing(self, sampler, schedule="Automatic", *, img2img=False, **fields):
        return self.Processing(sampler, schedule, **fields)

    def sample(self, p):
        return p.sample()

    def sample_img2img(self, p, image):
        return p.sample_img2img(image)

    def sample_with(self, p, function, image=None):
        p.begin()
        p.sampler.func, p.sampler.extra_params = function, []
        if image is None:
            return p.run(p.sampler)
        ones = torch.ones_like(image)
        return p.sampler.sample_img2img(p, image, p.noise(), 0.3 * ones, -0.1 * ones)

    def pasted(self, p):
        params = {key: str(value) for key, value in p.extra_generation_params.items()}
        for callback in self.script_callbacks.infotext_pasted:
            callback("", params)
        return params

    def recorded(self, p):
        return p.sampler.model_wrap_cfg.seen

    @contextlib.contextmanager
    def interrupted_after(self, p, evaluations):
        make = self.sd_samplers_kdiffusion.CFGDenoiser

        class Denoiser(make):
            def forward(denoiser, *args, **more):
                self.shared.state.interrupted = len(denoiser.seen) == evaluations
                return make.forward(denoiser, *args, **more)

        self.sd_samplers_kdiffusion.CFGDenoiser = Denoiser
        try:
            yield
        finally:
            self.sd_samplers_kdiffusion.CFGDenoiser, self.shared.state.interrupted = make, False


@contextlib.contextmanager
def started(variant, parameterization="eps"):
    """A host with the extension loaded; nothing of it is left behind."""

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]

    k_diffusion()
    path, known = list(sys.path), {name.partition(".")[0] for name in sys.modules}
    forget()
    own = {ROOT, ROOT / "tests", ROOT / "tools"}  # of pytest.ini
    sys.path[:] = [str(HOST), *(entry for entry in path if Path(entry).resolve() not in own)]
    try:
        shared = importlib.import_module("modules.shared")
        shared.variant, shared.sd_model = variant, shared.Network(parameterization)
        if variant == "old":
            sys.modules["modules.sd_schedulers"] = None  # cannot be imported
        modules = {name: importlib.import_module(f"modules.{name}") for name in MODULES}
        modules["sd_schedulers"] = None if variant == "old" else importlib.import_module("modules.sd_schedulers")
        processing = importlib.import_module("modules.processing").Processing
        known |= {name.partition(".")[0] for name in sys.modules}
        modules["scripts"].load_script(ROOT)
        yield Host(Processing=processing, known_modules=known - {"fewstep"}, **modules)
    finally:
        forget()
        sys.path[:] = path


@pytest.fixture(params=VARIANTS)
def webui(request):
    with started(request.param) as host:
        yield host


@pytest.mark.parametrize("check", contract.CHECKS)
def test_contract(webui, check):
    contract.CHECKS[check](webui)


def test_forge_leaves_the_folder_on_the_path_and_we_take_it_off():
    def ours():
        """What `import nodes` would find in our folder; ComfyUI's may be imported here already."""
        folders = [folder for folder in sys.path if Path(folder).resolve() == ROOT]
        return importlib.machinery.PathFinder.find_spec("nodes", folders)

    with started("forge") as host:
        before = []
        host.script_callbacks.before_ui[:] = [lambda: before.append(ours())]
        host.scripts.load_script(ROOT)
        assert before[0].origin == str(ROOT / "nodes" / "__init__.py")
        assert ours() is None


@pytest.mark.parametrize("parameterization", ["v", "flow"])
@pytest.mark.parametrize("check", [
    "check_samplers_are_the_core", "check_schedules_are_the_core", "check_a_batch_is_its_images_alone",
    "check_image_to_image_is_given_a_part_of_the_levels", "check_the_published_plan_is_for_its_model_alone",
])  # fmt: skip
def test_other_predictions(parameterization, check):
    with started("forge", parameterization) as host:
        contract.CHECKS[check](host)


def test_prompts_may_change_along_the_run(monkeypatch):
    """The refiner puts other prompts into the arguments of the model while a sampler runs."""
    with started("a1111") as host:
        seen, forward = [], host.sd_samplers_kdiffusion.CFGDenoiser.forward

        def watching(denoiser, x, sigma, uncond, cond, **more):
            seen.append(cond.mean().item())
            denoiser.p.sampler.sampler_extra_args["cond"] = cond + 1
            return forward(denoiser, x, sigma, uncond, cond, **more)

        monkeypatch.setattr(host.sd_samplers_kdiffusion.CFGDenoiser, "forward", watching)
        host.sample(host.processing("DPM++ 2M (Few-Step)", steps=4))
        assert seen == pytest.approx([0.3, 1.3, 2.3, 3.3])


def test_guidance_without_a_negative_prompt_is_an_error():
    """Forge has none at a CFG of 1, and would mix the prediction with nothing."""
    with started("forge") as host:
        ramp = ("", "", "linear", 3)
        with pytest.raises(ValueError, match="negative prompt"):
            host.sample(host.processing("DDIM (Few-Step)", cfg_scale=1.0, values=ramp))
        assert host.sample(host.processing("DDIM (Few-Step)", cfg_scale=1.0)).isfinite().all()


def test_a_processing_within_another_has_no_settings_of_it():
    """Extensions that work on finished images run one of their own, and leave out scripts as they like."""
    with started("a1111") as host:
        levels = {}
        outer = host.processing("DPM++ 2M (Few-Step)", "Karras (Few-Step)", values=("", "rho=3"))
        host.sample(outer)
        for name in ("inner", "plain"):
            p = host.processing("DPM++ 2M (Few-Step)", "Karras (Few-Step)")
            if name == "plain":
                p.begin()
            sampler = host.sd_samplers.create_sampler(p.sampler_name, host.shared.sd_model)
            levels[name] = sampler.get_sigmas(p, p.steps)
        assert torch.equal(levels["inner"], levels["plain"])
        outer.begin()  # the next batch has them again
        assert not torch.equal(outer.sampler.get_sigmas(outer, outer.steps), levels["plain"])


class CONST:
    pass


class EPS:
    pass


class V_PREDICTION(EPS):
    pass


class ModelSamplingDiscreteFlow:
    pass


@pytest.mark.parametrize(("sampling", "found"), [
    (CONST(), "CONST"), (V_PREDICTION(), "V_PREDICTION"), (EPS(), "EPS"), (ModelSamplingDiscreteFlow(), "CONST"),
])  # fmt: skip
def test_prediction_by_the_model_sampling_of_reforge_and_of_sd3_in_a1111(sampling, found):
    with started("a1111"):
        prediction = sys.modules["fewstep.webui.host"].prediction
        model = SimpleNamespace(model_sampling=sampling)
        reforge = SimpleNamespace(forge_objects=SimpleNamespace(unet=SimpleNamespace(model=model)))
        assert prediction(SimpleNamespace(inner_model=reforge)) == found
        assert prediction(SimpleNamespace(inner_model=SimpleNamespace(model=model, parameterization="eps"))) == found


def test_a_model_that_is_not_recognised_follows_no_plan_for_another():
    with started("a1111") as host:
        type(host.shared.sd_model).is_sd1 = False
        with pytest.raises(ValueError, match="not recognised"):
            host.sample(host.processing("Plan (Few-Step)", steps=10, values=(*[""] * 7, "amed_dpm_2m")))


NAMES = [
    "DPM++ 2S", "DPM++ 2M", "DPM++ 3M", "DPM 2M", "DPM 3M", "UniPC", "iPNDM variable steps", "DDIM", "DPM++ 2M SDE",
    "DPM++ SDE", "Euler ancestral", "DEIS", "Consistency", "Plan", "Karras", "Exponential", "Time uniform",
    "Time quadratic", "Polyexponential", "Cosine", "Laplace", "Beta", "Linear-quadratic", "Align Your Steps", "GITS",
    "Normal", "Simple", "SGM uniform", "DDIM uniform", "Beta 57", "Bong tangent", "Karras without its last level",
    "KL-optimal",
    "Time quadratic without its last level", "Beta without its last level",
    "Beta 57 without its last level",
    "LMS", "Gradient estimation", "RES 2S", "RES multistep", "SEEDS 2", "ER-SDE", "SA-Solver",
]  # fmt: skip


def test_names_that_images_and_requests_keep_are_still_there():
    """New ones are added to the list, and to docs/WEBUI.md; none is taken away."""
    with started("a1111"):
        names = sys.modules["fewstep.webui.names"]
        current = [names.PLAN, *names.SAMPLER_NAMES, *names.SCHEDULE_NAMES]
        assert sorted(current) == sorted(name + " (Few-Step)" for name in NAMES)
        page = (ROOT / "docs" / "WEBUI.md").read_text()
        assert not [name for name in NAMES if f"`{name}`" not in page]
