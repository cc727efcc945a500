"""Trains a small StyleGAN2 against a discriminator: something to refine.

The generator descends the non-saturating loss softplus(-D(G(z))), the discriminator
softplus(-D(x)) + softplus(D(G(z))) + (gamma / 2) |grad D(x)|**2; both move at once on one batch.

Source:
    Goodfellow et al. 2014, arXiv 1406.2661; Mescheder et al. 2018, arXiv 1801.04406 (R1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from accelerate import Accelerator
from pydantic import NonNegativeFloat, PositiveInt
from torch import nn
from torch.nn.functional import softplus
from torch.optim import Optimizer

from instil.base import data
from instil.base.average import Average
from instil.base.config import Config
from instil.base.config.fields import Location, RunName
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.optimizer import Adam
from instil.base.runs.recipe import ImageTraining, RunRecipe
from instil.base.runs.run import Report
from instructors.denoiser import UNCONDITIONAL, Condition, class_labels
from students.gan.adversary import Adversary, r1
from students.gan.stylegan2 import Architecture, StyleGAN2


class Network(Config):
    """The size of the generator, a `StyleGAN2`, and of the discriminator.

    Attributes:
        z_dim: Length of the latent z.
        w_dim: Length of the style vector w.
        mapping_layers: Layers of the mapping from z to w.
        channel_base: The channels of a layer, times its resolution.
        channel_max: The most channels of a layer.
        architecture: How the images of the resolutions are combined.
        adversary: The channels of the discriminator.
    """

    z_dim: PositiveInt = 64
    w_dim: PositiveInt = 64
    mapping_layers: PositiveInt = 2
    channel_base: PositiveInt = 512
    channel_max: PositiveInt = 64
    architecture: Architecture = "skip"
    adversary: PositiveInt = 64


class TrainRecipe(RunRecipe, ImageTraining):
    """The recipe of an adversarial training.

    Attributes:
        data: Images, named as `instil.base.data.load` takes them.
        network: The sizes of both networks.
        optimizer: The generator's optimizer.
        adversary: The discriminator's optimizer.
        r1: The weight of the gradient penalty, gamma.
        snapshots: Updates after which the average is also written as a student.
    """

    name: RunName = "gan"
    data: Location
    network: Network = Network()
    optimizer: Adam = Adam(lr=2e-3, betas=(0.0, 0.99))
    adversary: Adam = Adam(lr=2e-3, betas=(0.0, 0.99))
    r1: NonNegativeFloat = 0.1
    batch: PositiveInt = 64
    snapshots: tuple[PositiveInt, ...] = ()
    log_every: PositiveInt = 100
    save_every: PositiveInt = 1000

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("steps", "snapshots", *RunRecipe.MAY_CHANGE)


@dataclass
class State:
    """Everything a training carries over a restart."""

    generator: StyleGAN2
    average: Average[StyleGAN2]
    adversary: Adversary
    optimizer: Optimizer
    adversary_optimizer: Optimizer
    step: int = 0

    def modules(self) -> dict[str, nn.Module]:
        """The modules of a checkpoint, by file name."""
        return {
            "generator": self.generator,
            "average": self.average.module,
            "adversary": self.adversary,
        }

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers of a checkpoint, by file name."""
        return {"optimizer": self.optimizer, "adversary-optimizer": self.adversary_optimizer}


def fresh(recipe: TrainRecipe, images: data.Images, device: torch.device) -> State:
    """The state before the first update: initial weights depend on `recipe.seed` alone.

    Raises:
        InstilError: The images are not square, or of a side that is no power of two from 4 on.
    """
    channels, height, width = images.shape
    if height != width:
        raise InstilError(f"{images.source}: images of {height}x{width}, expected square ones")
    sizes = recipe.network.model_dump(exclude={"adversary"})
    classes = len(images.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = StyleGAN2(resolution=height, channels=channels, classes=classes, **sizes)
        adversary = Adversary(images.shape, recipe.network.adversary, classes)
    generator, adversary = generator.to(device), adversary.to(device)
    return State(
        generator,
        Average(generator, recipe.average),
        adversary,
        recipe.optimizer.build(generator),
        recipe.adversary.build(adversary),
    )


def train(
    state: State, images: data.Images, recipe: TrainRecipe, accelerator: Accelerator
) -> Iterator[Report]:
    """Train until `recipe.steps`; yields after each update, when `state` may be saved.

    Args:
        state: Changed in place.
        images: The training set; rows are drawn with replacement.
        recipe: The recipe.
        accelerator: The only distributed engine.

    Yields:
        A report per update.
    """
    generator = accelerator.prepare_model(state.generator)
    adversary = accelerator.prepare_model(state.adversary)
    generator.train()
    device, size = accelerator.device, recipe.batch // accelerator.num_processes
    pixels = images.pixels.to(device)
    labels = None if images.labels is None else images.labels.to(device)
    while state.step < recipe.steps:
        start = accelerator.process_index * size
        draws = Draws.of_range(recipe.seed, state.step, start, size, device)
        rows = draws.integers("row", len(images))
        real = data.to_float(pixels[rows]).requires_grad_()
        real_label = UNCONDITIONAL if labels is None else Condition(label=labels[rows])
        classes = state.generator.classes
        label = class_labels(classes, draws.integers("label", max(1, classes)))
        with accelerator.autocast():
            sample = generator(state.generator.prior(draws), label)
            leaf = sample.detach().requires_grad_()
            generator_loss = softplus(-state.adversary(leaf, label)).mean()
            (gradient,) = torch.autograd.grad(generator_loss, leaf)
            both = Condition.cat([real_label, label]) if classes else UNCONDITIONAL
            logits = adversary(torch.cat([real, sample.detach()]), both)
        on_real, on_fake = logits.float().chunk(2)
        loss = softplus(-on_real) + softplus(on_fake) + recipe.r1 / 2 * r1(on_real, real)
        accelerator.backward(sample, gradient=gradient)
        accelerator.backward(loss.mean())
        norm = recipe.optimizer.update(state.optimizer, state.step, recipe.steps)
        norm = norm + recipe.adversary.update(state.adversary_optimizer, state.step, recipe.steps)
        state.step += 1
        state.average.update(state.generator, state.step * recipe.batch, recipe.batch)
        losses = {"generator": generator_loss.detach(), "adversary": loss.mean().detach()}
        yield Report(state.step, losses, norm)
