"""Distillation on two Gaussians: what is minimised, that it helps, that it goes on, and that processes share it."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samplers import SAMPLERS
from samplers.distill import (
    ConsistencyDistillation,
    DistributionMatching,
    Learner,
    ProgressiveDistillation,
    TrajectoryDistillation,
    add_lora,
    inserted,
    lora_file,
    remove_lora,
)
from samplers.distill import student as students
from samplers.distill.consistency import lower_level
from samplers.distill.losses import HUBER, LOSSES
from samplers.distill.step import coefficients, step

SIGMA_MAX = 14.6
LEVELS = (SIGMA_MAX, 2.0, 0.0)  # two evaluations
FLOW_LEVELS = (1.0, 0.7, 0.0)


MODES, SPREAD = torch.tensor([[-1.5, 0.5], [1.5, -0.5]], dtype=torch.float64), 0.5


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] for x_0 of two Gaussians in the plane; x [B, 2, 1, 1], in EDM space."""
    flat, s2 = x.flatten(1), sigma.double()[:, None] ** 2
    share = torch.softmax(-((flat[:, None] - MODES) ** 2).sum(-1) / (2 * (SPREAD**2 + s2)), dim=1)
    return ((share @ MODES * s2 + flat * SPREAD**2) / (s2 + SPREAD**2)).view(x.shape)


def flow_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The same under x_t = (1 - sigma) x_0 + sigma noise."""
    alpha = (1 - sigma.double()).clamp(min=1e-9)
    return denoiser(x / alpha.view(-1, 1, 1, 1), sigma.double() / alpha)


class Student(nn.Module):
    """The denoiser itself, and beside it a small network with EDM's scales, which answers 0 at first. Float64."""

    def __init__(self, flow: bool = False, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        self.net.double()
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)
        self.flow = flow

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        own = (flow_denoiser if self.flow else denoiser)(x, sigma)
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        size = (alpha**2 + sigma**2).sqrt()[:, None]
        seen = torch.cat([x.flatten(1) / size, (sigma / (alpha + sigma))[:, None]], dim=1)
        return own + (sigma[:, None] / size * self.net(seen)).view(x.shape)


def noise(seed: int, count: int = 64, sigma: float = SIGMA_MAX) -> Tensor:
    return sigma * torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(seed: int, count: int = 64) -> Tensor:
    """Samples of the two Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(2, (count,), generator=generator)
    spread = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return (MODES[which] + SPREAD * spread)[..., None, None]


def learner(student: nn.Module, updates: int = 400, **more) -> Learner:
    return Learner(dict(student.named_parameters()), updates=updates, learning_rate=2e-3, last_rate=2e-4, **more)


def exact(x: Tensor, levels, flow: bool = False) -> Tensor:
    model = flow_denoiser if flow else denoiser
    return SAMPLERS["dpmpp_2m"].function(model, x, inserted(levels, 60, flow), flow=flow, disable=True)


def error(student, x: Tensor, levels, flow: bool = False) -> float:
    with torch.no_grad():
        found = SAMPLERS["ddim"].function(student, x, levels, flow=flow, disable=True)
    return float((found - exact(x, levels, flow)).square().mean().sqrt())


# The parts


@pytest.mark.parametrize("flow", [False, True])
def test_step_is_ddim_for_levels_of_each_image(flow: bool):
    model, levels = (flow_denoiser, (0.9, 0.4, 0.1)) if flow else (denoiser, (5.0, 1.0, 0.2))
    x = noise(0, 2, levels[0])
    s, t = torch.tensor([levels[:2], levels[1:]], dtype=torch.float64).T.contiguous().T
    s, t = torch.tensor(levels[:2], dtype=torch.float64), torch.tensor(levels[1:], dtype=torch.float64)
    found = step(x, model(x, s), s, t, flow)
    for k in range(2):
        plain = SAMPLERS["ddim"].function(model, x[k : k + 1], levels[k : k + 2], flow=flow, disable=True)
        assert torch.allclose(found[k : k + 1], plain, rtol=0, atol=1e-12)


def test_inserted_levels_hold_those_of_the_student():
    found = inserted((10.0, 1.0, 0.1, 0.0), 3)
    assert found[::4] == (10.0, 1.0, 0.1, 0.0) and len(found) == 13
    assert found[1:4] == pytest.approx([10 ** (1 - k / 4) for k in (1, 2, 3)])  # even in lambda
    assert found[9:12] == pytest.approx([0.075, 0.05, 0.025])  # the last to 0 in sigma
    flow = inserted((1.0, 0.5, 0.0), 1, flow=True)
    assert flow == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0))


def test_pseudo_huber_is_a_square_at_first_and_a_distance_far_out():
    loss = LOSSES["pseudo_huber"]
    small, large = torch.tensor([1e-5], dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)
    assert float(loss(small)) == pytest.approx(1e-10 / (2 * HUBER), rel=1e-3)
    assert float(loss(large)) == pytest.approx(10 - HUBER, rel=1e-4)


# Following a trajectory


@pytest.mark.parametrize("flow", [False, True])
def test_loss_is_that_of_the_prediction_that_leads_to_the_teacher(flow: bool):
    """At first the student is DDIM: the loss of its first step is the distance of the two predictions."""
    levels, model = (FLOW_LEVELS, flow_denoiser) if flow else (LEVELS, denoiser)
    student, x = Student(flow), noise(1, sigma=levels[0])
    training = TrajectoryDistillation(learner(student), levels, flow=flow, every=4, loss="l2")
    teacher = functools.partial(SAMPLERS["dpmpp_3m"].function, model, sigmas=inserted(levels, 3, flow), flow=flow)
    goals = training.teach(lambda x, callback: teacher(x, callback=callback, disable=True), x)
    s, t = (torch.full((len(x),), level, dtype=torch.float64) for level in levels[:2])
    a, c = (float(number[0]) for number in coefficients(s, t, flow))
    wanted = (model(x, s) - (goals[0] - a * x) / c).square().mean()
    assert training.learn(student, x, goals)[0] == pytest.approx(float(wanted), rel=1e-9)


def test_goals_are_the_samples_of_the_teacher_at_the_levels():
    x, training = noise(2, 3), TrajectoryDistillation(learner(Student()), (SIGMA_MAX, 3.0, 1.0, 0.0), every=2)
    sigmas = inserted((SIGMA_MAX, 3.0, 1.0, 0.0), 1)
    goals = training.teach(lambda x, callback: _heun(x, sigmas, callback), x)
    assert len(goals) == 3
    for k, goal in enumerate(goals, 1):
        assert torch.equal(goal, _heun(x, sigmas[: 2 * k + 1], None))
    with pytest.raises(ValueError, match="made 2 steps; 2 for each step of the student are 6"):
        training.teach(lambda x, callback: _heun(x, sigmas[:3], callback), x)


def _heun(x: Tensor, sigmas, callback) -> Tensor:
    return SAMPLERS["heun"].function(denoiser, x, sigmas, callback=callback, disable=True)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.slow
def test_student_of_two_evaluations_nears_the_teacher(flow: bool):
    """On noise it has not seen its error is well below that of DDIM at these levels, which it was at first."""
    levels, model = (FLOW_LEVELS, flow_denoiser) if flow else (LEVELS, denoiser)
    student, held = Student(flow), noise(10**6, 256, levels[0])
    before = error(student, held, levels, flow)
    own = learner(student, 600)
    training = TrajectoryDistillation(own, levels, flow=flow, every=16)
    fine = inserted(levels, 15, flow)
    for k in range(300):
        x = noise(k, 128, levels[0])
        goals = training.teach(
            lambda x, callback: SAMPLERS["dpmpp_2m"].function(
                model, x, fine, flow=flow, callback=callback, disable=True
            ),
            x,
        )
        training.learn(student, x, goals)
    with own.averaged():
        after = error(student, held, levels, flow)
    assert after < 0.7 * before


def test_run_that_was_stopped_ends_as_one_that_was_not():
    """Bit for bit, through the state of the learner."""
    goals = [noise(7, 8, 2.0), noise(8, 8, 0.3)]

    def train(student: Student, own: Learner, steps: range) -> None:
        training = TrajectoryDistillation(own, LEVELS)
        for k in steps:
            training.learn(student, noise(k, 8), goals)

    through = Student()
    own = learner(through)
    train(through, own, range(6))
    stopped = Student()
    first = learner(stopped)
    train(stopped, first, range(3))
    going_on = Student(seed=5)
    second = learner(going_on)
    second.load(first.state())
    train(going_on, second, range(3, 6))
    assert second.done == own.done == 12
    for name, weight in through.named_parameters():
        assert torch.equal(weight, dict(going_on.named_parameters())[name])
        assert torch.equal(own.average[name], second.average[name])


def test_averaged_weights_are_put_back():
    student = Student()
    own = learner(student)
    own.update(student(noise(0, 4), torch.full((4,), 2.0, dtype=torch.float64)).square().mean())
    own.update(student(noise(1, 4), torch.full((4,), 2.0, dtype=torch.float64)).square().mean())
    latest = copy.deepcopy(student.state_dict())
    seen = []

    def stopped() -> None:
        with own.averaged():
            seen.append(student.net[-1].weight.clone())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert torch.equal(seen[0], own.average["net.4.weight"]) and not torch.equal(seen[0], latest["net.4.weight"])
    assert all(torch.equal(weight, latest[name]) for name, weight in student.state_dict().items())


# The other ways


@pytest.mark.slow
def test_progressive_student_does_two_steps_in_one():
    """One step of DDIM with the trained student is near two with the teacher."""
    levels = (SIGMA_MAX, 3.0, 0.8, 0.0)
    student, x0 = Student(), data(3, 256)
    own = learner(student, 1200)
    training = ProgressiveDistillation(own, levels, loss="l2")
    held = noise(10**6, 256)
    two = SAMPLERS["ddim"].function(denoiser, held, inserted(levels, 1), disable=True)

    def distance() -> float:
        with torch.no_grad():
            return float((SAMPLERS["ddim"].function(student, held, levels, disable=True) - two).square().mean().sqrt())

    before, generator = distance(), torch.Generator().manual_seed(0)
    for _ in range(1200):
        training.learn(student, denoiser, x0, generator)
    with own.averaged():
        assert distance() < 0.7 * before


def test_progressive_loss_is_zero_for_the_student_that_is_sought():
    """A student that answers with what two steps of the teacher come to has nothing to learn."""
    levels = (4.0, 1.0, 0.0)
    middles = dict(zip(levels, inserted(levels, 1)[1::2], strict=False))
    ends = dict(itertools.pairwise(levels))
    weight = torch.zeros((), dtype=torch.float64)

    def perfect(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.double()
        u, t = (torch.tensor([d[float(v)] for v in s], dtype=torch.float64) for d in (middles, ends))
        middle = step(x, denoiser(x, s), s, u, False)
        end = step(middle, denoiser(middle, u), u, t, False)
        a, c = (number.view(-1, 1, 1, 1) for number in coefficients(s, t, False))
        return (end - a * x) / c + weight

    training = ProgressiveDistillation(Learner({"w": weight}, updates=1), levels, loss="l1")
    assert training.learn(perfect, denoiser, data(0, 16), torch.Generator().manual_seed(0)) < 1e-12


def test_levels_of_a_consistency_pair_come_nearer():
    t = torch.tensor([0.05, 1.0, 80.0], dtype=torch.float64)
    shares = [lower_level(t, share) / t for share in (0.0, 0.3, 0.6, 0.99)]
    for near, far in zip(shares[1:], shares, strict=False):
        assert bool((near >= far).all()) and bool((near < 1).all())
    # ECT: r / t = 1 - (1 + 8 sigmoid(-t)) / 2^a, with a = 8 in the end
    assert torch.allclose(shares[-1], 1 - (1 + 8 * torch.sigmoid(-t)) / 256)


@pytest.mark.slow
def test_consistency_student_gives_the_image_in_one_evaluation():
    student, x0, held = Student(), data(4, 256), noise(10**6, 256)
    levels = (SIGMA_MAX, 0.0)
    before, own = error(student, held, levels), learner(student, 800)
    training, generator = ConsistencyDistillation(own, 0.03, SIGMA_MAX), torch.Generator().manual_seed(0)
    for _ in range(800):
        training.learn(student, denoiser, x0, generator)
    with own.averaged():
        assert error(student, held, levels) < 0.8 * before


def test_distribution_matching_moves_samples_to_the_data():
    """Samples of the data with a shift, which is all that the student can change, learn the teacher's mean."""
    shift = nn.Parameter(torch.full((1, 2, 1, 1), 0.8, dtype=torch.float64))
    fake, images = Student(), data(5, 512)
    draws = torch.Generator().manual_seed(1)

    def sample() -> Tensor:
        return images[torch.randint(len(images), (128,), generator=draws)] + shift

    own = Learner({"shift": shift}, updates=300, learning_rate=1e-2, last_rate=1e-3)
    training = DistributionMatching(own, learner(fake, 600), 0.05, 5.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        training.learn(sample, fake, denoiser, generator)
    assert float(shift.detach().abs().mean()) < 0.25


# LoRA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean((2, 3)))


def test_lora_changes_nothing_at_first_and_is_of_its_rank():
    net, x = Net(), torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    plain, kept = net(x), [net.conv.weight.clone(), net.linear.weight.clone()]
    weights = add_lora(net, 3)
    assert torch.equal(net(x), plain)
    assert {n for n, p in net.named_parameters() if p.requires_grad} and all(p.requires_grad for p in weights.values())
    own = Learner(weights, updates=5, learning_rate=1e-2)
    for k in range(5):
        own.update((net(x + k) - torch.arange(6) * k).square().mean())
    changes = [
        (now - before).flatten(1) for now, before in zip((net.conv.weight, net.linear.weight), kept, strict=True)
    ]
    assert [int(torch.linalg.matrix_rank(change.detach(), tol=1e-6)) for change in changes] == [3, 3]
    trained = net(x)
    tensors = lora_file(net)
    assert set(tensors) == {
        f"diffusion_model.{name}.{part}"
        for name in ("conv", "linear")
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    remove_lora(net)
    assert torch.allclose(net(x), plain)
    with torch.no_grad():  # as every loader of such files does it
        for name in ("conv", "linear"):
            up, down, alpha = (
                tensors[f"diffusion_model.{name}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha")
            )
            layer = getattr(net, name)
            layer.weight += (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape) * alpha / len(down)
    assert torch.allclose(net(x), trained, atol=1e-6)


def test_lora_that_is_kept_stays_in_the_weights():
    net, x = Net(), torch.ones(1, 4, 3, 3)
    weights = add_lora(net, 2, wanted=lambda name, layer: name == "linear")
    assert set(weights) == {"linear.lora_down", "linear.lora_up"}
    Learner(weights, updates=1, learning_rate=0.1, last_rate=0.1).update(net(x).square().mean())
    changed = net(x)
    remove_lora(net, keep=True)
    assert torch.allclose(net(x), changed) and type(net.linear.weight) is nn.Parameter
    with pytest.raises(ValueError, match="no LoRA"):
        lora_file(net)


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Learner({}, updates=1), "nothing to train"),
        (lambda: Learner({"w": torch.zeros(2, dtype=torch.int8)}, updates=1), r"w is torch\.int8"),
        (lambda: Learner({"w": torch.zeros(2)}, updates=0), "updates = 0"),
        (lambda: Learner({"w": torch.zeros(2)}, updates=1, learning_rate=1e-5), "the last not higher"),
        (lambda: Learner({"w": torch.zeros(2)}, updates=1, average=1.0), "average = 1"),
        (lambda: TrajectoryDistillation(learner(Student()), (1.0,)), "two levels or more"),
        (lambda: TrajectoryDistillation(learner(Student()), (1.0, 2.0, 0.0)), "must descend"),
        (lambda: TrajectoryDistillation(learner(Student()), (1.0, 1.0, 0.0)), "must descend"),
        (lambda: TrajectoryDistillation(learner(Student()), (1.0, math.nan, 0.0)), "must descend|finite|nan"),
        (lambda: TrajectoryDistillation(learner(Student()), (2.0, 0.0), flow=True), "end at 1"),
        (lambda: TrajectoryDistillation(learner(Student()), LEVELS, loss="l3"), "one of pseudo_huber, l1, l2"),
        (lambda: TrajectoryDistillation(learner(Student()), LEVELS, every=0), "every = 0"),
        (lambda: inserted(LEVELS, -1), "extra = -1"),
        (lambda: ConsistencyDistillation(learner(Student()), 2.0, 1.0), "sigma_min = 2"),
        (lambda: DistributionMatching(learner(Student()), learner(Student()), 0.0, 1.0), "sigma_min = 0"),
        (lambda: add_lora(Net(), 0), "rank = 0"),
        (lambda: add_lora(Net(), 1, wanted=lambda name, layer: False), "no linear or convolutional layer"),
        (lambda: [add_lora(net, 1) for net in [Net()] * 2], "has a LoRA already"),
        (lambda: learner(Student()).load({}), "that of other weights"),
    ],
)
def test_bad_input_is_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_gradient_that_is_not_finite_leaves_the_weights():
    weight = torch.ones(3)
    own = Learner({"w": weight}, updates=3)
    with pytest.raises(ValueError, match="gradient is not finite"):
        own.update((weight * math.inf).sum())
    assert torch.equal(weight, torch.ones(3)) and own.done == 0


# Processes


def share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    weights = _trained(slice(rank * 4, rank * 4 + 4))
    save_file({"weights": weights}, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def _trained(part: slice) -> Tensor:
    student = Student()
    training = TrajectoryDistillation(learner(student), LEVELS, loss="l2")
    goals = [noise(7, 8, 2.0)[part], noise(8, 8, 0.3)[part]]
    for k in range(3):
        training.learn(student, noise(k, 8)[part], goals)
    return torch.cat([weight.detach().flatten() for weight in student.parameters()])


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Halves of a batch in two processes: the weights differ by float64's rounding, over what they have moved.

    Adam divides a gradient by its own size, so that weights whose gradient is rounding alone move by it: the whole way
    is compared, not each weight."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    for process in [subprocess.Popen(command, env=environment) for command in commands]:
        assert process.wait(120) == 0
    first, second = (load_file(tmp_path / f"{rank}.safetensors")["weights"] for rank in (0, 1))
    assert torch.equal(first, second)
    start = torch.cat([weight.detach().flatten() for weight in Student().parameters()])
    alone = _trained(slice(0, 8))
    assert float((first - alone).norm()) < 1e-3 * float((alone - start).norm())


if __name__ == "__main__":
    share(int(sys.argv[1]), sys.argv[2])


# Batches in parts, and what a student says of itself


def test_a_batch_in_parts_is_the_batch():
    """The gradients of parts, by their share, add up to that of the whole: in float64 to rounding."""
    changes = []
    for sizes in ((12,), (4, 8)):
        student = Student(seed=1)
        one = learner(student, clip=math.inf)
        training = TrajectoryDistillation(one, LEVELS)
        x = noise(5, 12)
        goal = exact(x, LEVELS[:2])
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            loss, _ = training.loss(0, student, x[part], goal[part])
            one.add(loss * size / 12)
            start += size
        changes.append(torch.cat([weight.grad.flatten() for weight in student.parameters()]))
    assert torch.allclose(*changes, rtol=1e-10, atol=1e-14)


def test_a_part_that_fails_adds_nothing():
    student = Student()
    one = learner(student)
    with pytest.raises(ValueError, match="does not depend on the weights"):
        one.add(torch.ones(()))
    weights = list(student.parameters())
    loss = sum(weight.square().sum() for weight in weights) * torch.ones((), dtype=torch.float64)
    weights[0].register_hook(lambda _: (_ for _ in ()).throw(MemoryError("no")))
    with pytest.raises(MemoryError):
        one.add(loss)
    assert all(weight.grad is None for weight in weights)


def test_a_student_is_read_as_it_was_written():
    student = students.Student((14.6, 2.0, 0.0), sampler="consistency", training={"rank": 4})
    assert students.read_student(student.text()) == student == students.student_in(student.metadata())
    assert student.steps == 2 and students.student_in({}) is None
    assert student.is_part((2.0, 0.0)) and student.is_part((14.6 * 1.0005, 2.0))
    assert not student.is_part((14.6, 0.0)) and not student.is_part((14.6 * 1.002, 2.0, 0.0))
    with pytest.raises(ValueError, match="this Few-Step reads up to"):
        students.read_student('{"version": 2}')
