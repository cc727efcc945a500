"""Fits ONE arm of a transfer: what of a source model is shared with a target, and what is trained.

Source and target need the same embedding h of what they are conditioned on, or the same latent
variables: then a model of the target needs its own part theta alone, and few samples. An arm says
what is done with the shared part psi:

    scratch       theta and psi are fresh: no transfer
    frozen        both start as the source's, psi stays
    finetune      both start as the source's and are trained
    finetune-l2   likewise, with kappa |psi - psi_source|**2 added to the loss
    lora          as frozen, with low-rank adapters beside the layers of psi

Whether an arm helps is for `eval.transfer.compare` to find out. In a model of vectors psi is the
module `embed`. A diffusers network has none: psi is its weight matrices and kernels, and theta what
remains, biases, scales of normalisations and class vectors, a hundredth of the parameters.

Source:
    Tian and Shen, "Enhancing Accuracy in Generative Models via Knowledge Transfer", arXiv
    2405.16837 (the shared embedding condition); Xie et al. 2023, arXiv 2304.06648 (biases, scales
    and class vectors as what adapts a diffusion model).
"""

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from instil.base.data import floats
from instil.base.draws import Draws
from instil.base.early_stopping import EarlyStopping
from instil.base.errors import InstilError
from instil.base.levels import Levels, LogUniform
from instil.base.optimizer import Adam
from instil.base.shapes import expand
from instructors.denoiser import Condition, Denoiser
from instructors.lora import Lora
from instructors.low_rank import inject
from instructors.training.denoising import denoising_loss
from instructors.training.train import State, Training, train
from instructors.transfer import ARMS, Arm

HIGHEST = 20.0
Shared = Callable[[str, nn.Parameter], bool]
M = TypeVar("M", bound=nn.Module)


class Transfer(Training):
    """How an arm is trained; the same for all arms, so that they can be compared.

    Attributes:
        light: Factor on the learning rate of `frozen` and `lora`, which train few parameters.
        kappa: Strength of the penalty of `finetune-l2`.
        lora: The adapters of `lora`.
        lowest: Noise level from which on a held-out loss counts, in data units.
        stopping: When a training ends before `steps`; None never.
    """

    levels: Levels = LogUniform(sigma_min=0.05, sigma_max=HIGHEST)
    optimizer: Adam = Adam(lr=2e-3, betas=(0.9, 0.99), warmup=50, schedule="cosine", clip=1.0)
    light: PositiveFloat = 3.0
    steps: PositiveInt = 400
    batch: PositiveInt = 64
    average: NonNegativeFloat = 2_000.0
    kappa: PositiveFloat = 0.3
    lora: Lora = Lora()
    lowest: PositiveFloat = 0.1
    stopping: EarlyStopping | None = EarlyStopping()

    def of(self, arm: Arm) -> "Transfer":
        """What is done for one arm."""
        if arm not in ("frozen", "lora"):
            return self
        rate = self.optimizer.replace(lr=self.light * self.optimizer.lr)
        return self.replace(optimizer=rate)


def embedding(name: str, parameter: nn.Parameter) -> bool:
    """The shared part of a model that has a module `embed`."""
    return "embed" in name.split(".")


def trunk(name: str, parameter: nn.Parameter) -> bool:
    """The shared part of a diffusers network: its matrices and kernels, class vectors apart."""
    return parameter.ndim > 1 and not name.endswith("class_embedding.weight")


def begin(
    arm: Arm,
    source: M,
    blank: Callable[[], M],
    shared: Shared,
    kappa: float,
    lora: Lora = Lora(),  # noqa: B008, frozen
    seed: int = 0,
) -> tuple[M, Callable[[], Tensor] | None]:
    """The model an arm starts from, and its penalty on the weights.

    Args:
        arm: Which one.
        source: Trained on the source; not changed.
        blank: Makes a fresh model for the target. Weights of the same name and shape are carried
            over into it; what has another shape, such as a head of other outputs, stays fresh.
        shared: Of a parameter's name and value: whether it belongs to psi.
        kappa: Strength of the penalty.
        lora: The adapters.
        seed: Of the adapters.

    Returns:
        The model, with what is trained requiring gradients, and the penalty () or None.

    Raises:
        InstilError: No such arm, source and target share nothing, or peft is missing.
    """
    if arm not in ARMS:
        raise InstilError(f"arm: {arm!r} is not one of {', '.join(ARMS)}")
    model = blank().requires_grad_(True)
    if arm == "scratch":
        return model, None
    own, theirs = model.state_dict(), source.state_dict()
    carried = {k: t for k, t in theirs.items() if k in own and own[k].shape == t.shape}
    common = {k: p for k, p in model.named_parameters() if k in carried and shared(k, p)}
    if not common:
        raise InstilError(
            f"{arm}: source and target share no part; they must have the same embedding"
        )
    model.load_state_dict(own | carried)
    if arm in ("frozen", "lora"):
        for parameter in common.values():
            parameter.requires_grad_(False)
    if arm == "lora":
        own_part = [each for each in model.parameters() if each.requires_grad]
        layers = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and f"{name}.weight" in common
        ]
        inject(model, layers, lora, seed, "lora")
        for parameter in own_part:
            parameter.requires_grad_(True)
    if arm != "finetune-l2":
        return model, None
    anchors = [parameter.detach().clone() for parameter in common.values()]

    def penalty() -> Tensor:
        pairs = zip(common.values(), anchors, strict=True)
        return kappa * torch.stack([(p - a.to(p)).square().sum() for p, a in pairs]).sum()

    return model, penalty


def fit(
    denoiser: Denoiser,
    samples: Tensor,
    condition: Condition,
    recipe: Transfer,
    accelerator: Accelerator,
    anchor: Callable[[], Tensor] | None = None,
    updates: int | None = None,
) -> tuple[Denoiser, int]:
    """Train a denoiser on the samples of the target until samples it does not see say to stop.

    Args:
        denoiser: Trained in place, as far as its parameters require gradients.
        samples: (N, *shape); uint8 images become [-1, 1].
        condition: Of each sample.
        recipe: What to do.
        accelerator: The only distributed engine.
        anchor: A penalty on the weights.
        updates: Train on all samples and stop after so many; the schedule is still of
            `recipe.steps`. This is how what cross-validation chose is fitted to all samples.

    Returns:
        The average of its weights when training stopped, or the held-out loss was least, and the
        number of updates until then.
    """
    state = State.fresh(denoiser, recipe)
    average, stopping = state.average.module, recipe.stopping
    if stopping is None or updates is not None:
        steps = train(state, samples, condition, recipe, accelerator, anchor)
        for _ in itertools.islice(steps, updates):
            pass
        return average, state.step
    seen, deciding = stopping.split(len(samples), recipe.seed)
    held, known = samples[deciding], condition.rows(deciding)
    steps = train(state, samples[seen], condition.rows(seen), recipe, accelerator, anchor)
    device = accelerator.device
    kept, _ = stopping.run(
        average,
        steps,
        lambda: held_out_loss(average, held.to(device), known.to(device), recipe.lowest),
    )
    return average, kept


@torch.no_grad()
def held_out_loss(
    denoiser: Denoiser, samples: Tensor, condition: Condition, lowest: float, draws: int = 512
) -> float:
    """Mean squared error over sigma**2, at levels even in log sigma: nats, up to a factor.

    Args:
        denoiser: In eval mode.
        samples: (N, *shape); uint8 images become [-1, 1].
        condition: Of each sample.
        lowest: Noise level; the highest is `HIGHEST`, where images are long drowned.
        draws: Of level and noise, shared among the samples; always the same.
    """
    rows = torch.arange(draws, device=samples.device) % len(samples)
    clean = floats(samples[rows])
    low, high = max(lowest, denoiser.sigma_min), min(HIGHEST, denoiser.sigma_max)
    mixed = Draws.of_range(0, 0, 0, draws, samples.device)
    even = (mixed.uniform("level").argsort() + 0.5) / draws
    sigma = denoiser.round_sigma(LogUniform().sample(even.to(clean.dtype), low, high))
    noise = mixed.normal("noise", tuple(clean.shape[1:]), clean.dtype)
    total = 0.0
    for part in torch.arange(draws, device=samples.device).split(256):
        noisy = clean[part] + expand(sigma[part], clean) * noise[part]
        denoised = denoiser(noisy, sigma[part], condition.rows(rows[part]))
        total += denoising_loss(denoised, clean[part], sigma[part] ** -2).sum().item()
    return total / draws
