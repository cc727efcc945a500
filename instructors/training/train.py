"""Trains an instructor by denoising score matching."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from instil.base import data
from instil.base.average import Average
from instil.base.config import Config
from instil.base.config.fields import Location, RunName
from instil.base.draws import Draws, library_seed
from instil.base.errors import InstilError
from instil.base.files import appearing
from instil.base.levels import Levels, LogNormal
from instil.base.optimizer import Adam
from instil.base.runs.recipe import ImageTraining, RunRecipe
from instil.base.runs.run import Report
from instil.base.shapes import expand
from instructors.adapters.karras import Karras
from instructors.denoiser import Condition, Denoiser
from instructors.training.denoising import denoising_loss
from instructors.training.penalties import Penalty

D = TypeVar("D", bound=Denoiser)


class UNet(Config):
    """A diffusers `UNet2DModel`.

    Attributes:
        channels: Channels of each level; height and width halve from one level to the next.
        layers: Residual blocks per level.
        attention: Levels with attention, counted from 0, the finest.
        middle_attention: Whether the middle, at the lowest resolution, has attention.
        dropout: Dropout rate in residual blocks during training.
        groups: Groups of the group normalisation.
    """

    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 128)
    layers: PositiveInt = 2
    attention: tuple[Annotated[int, Field(ge=0)], ...] = ()
    middle_attention: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    groups: PositiveInt = 8

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W).

        Raises:
            InstilError: The sides do not halve as often as there are levels, or the levels have no
                such groups or attention.
        """
        from diffusers import UNet2DModel  # seconds to import

        factor = 2 ** (len(self.channels) - 1)
        if any(side % factor for side in shape[1:]):
            raise InstilError(
                f"network.channels: {len(self.channels)} levels need sides divisible by {factor}, "
                f"images are {shape[1]}x{shape[2]}; choose fewer levels"
            )
        odd = [width for width in self.channels if width % self.groups]
        if odd:
            raise InstilError(
                f"network.groups: {self.groups} does not divide the {odd[0]} of network.channels"
            )
        if any(level >= len(self.channels) for level in self.attention):
            raise InstilError(
                f"network.attention: {list(self.attention)} names a level that is not there; "
                f"network.channels has the levels 0 to {len(self.channels) - 1}"
            )
        kinds = ["Attn" if n in self.attention else "" for n in range(len(self.channels))]
        network: Any = UNet2DModel(
            sample_size=shape[1] if shape[1] == shape[2] else shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            norm_num_groups=self.groups,
            add_attention=self.middle_attention,
            attention_head_dim=min(32, self.channels[-1]),
            dropout=self.dropout,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=classes or None,
        )
        return network


class Training(ImageTraining):
    """How any denoiser is trained.

    Attributes:
        levels: The noise levels of the training.
        optimizer: The network's optimizer.
        flip: Whether half of the images drawn are mirrored.
        penalty: A penalty against learning few images by heart; `python -m eval horizon --kappas`
            says whether it helps, and how much of it.
    """

    levels: Levels = LogNormal()
    optimizer: Adam = Adam(lr=1e-3, betas=(0.9, 0.99), warmup=200, schedule="cosine", clip=1.0)
    flip: bool = False
    penalty: Penalty | None = None


class TrainRecipe(RunRecipe, Training):
    """The recipe of an instructor's training.

    Attributes:
        data: Images, named as `instil.base.data.load` takes them.
        network: The architecture.
        sigma_min: The smallest noise level, in units of images in [-1, 1].
        sigma_max: The largest noise level.
    """

    name: RunName = "instructor"
    data: Location
    network: UNet = UNet()
    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("steps", *RunRecipe.MAY_CHANGE)


@dataclass
class State(Generic[D]):
    """Everything a training carries over a restart."""

    denoiser: D
    average: Average[D]
    optimizer: Optimizer
    step: int = 0

    @classmethod
    def fresh(cls, denoiser: D, recipe: Training) -> "State[D]":
        """The state before the first update."""
        average = Average(denoiser, recipe.average)
        return cls(denoiser, average, recipe.optimizer.build(denoiser))

    def modules(self) -> dict[str, nn.Module]:
        """The modules of a checkpoint, by file name."""
        return {"denoiser": self.denoiser, "average": self.average.module}

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers of a checkpoint, by file name."""
        return {"optimizer": self.optimizer}


def fresh(recipe: TrainRecipe, images: data.Images, device: torch.device) -> State[Karras]:
    """The state before the first update: initial weights depend on `recipe.seed` alone.

    Raises:
        InstilError: The network does not fit the images, they are all one grey, or no noise level
            is left to train.
    """
    sigma_data = round(data.to_float(images.pixels).std().item(), 3)
    if sigma_data == 0:
        raise InstilError(f"{images.source}: all pixels are equal, so there is nothing to learn")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = recipe.network.build(images.shape, len(images.classes))
    denoiser = Karras(
        network, images.shape, recipe.sigma_min, recipe.sigma_max, sigma_data, len(images.classes)
    ).to(device)
    # Refused here, before there is a folder, if the two ranges do not meet.
    recipe.levels.sample(torch.full((1,), 0.5), denoiser.sigma_min, denoiser.sigma_max)
    return State.fresh(denoiser, recipe)


def train(
    state: State[Any],
    samples: Tensor,
    condition: Condition,
    recipe: Training,
    accelerator: Accelerator,
    anchor: Callable[[], Tensor] | None = None,
) -> Iterator[Report]:
    """Train until `recipe.steps`; yields after each update, when `state` may be saved.

    Args:
        state: Changed in place.
        samples: (N, *shape), the training set; uint8 images become [-1, 1]. Rows are drawn with
            replacement.
        condition: Of each of them.
        recipe: What to do.
        accelerator: The only distributed engine.
        anchor: A penalty () on the weights, added to the mean loss.

    Yields:
        A report per update.
    """
    module = accelerator.prepare_model(state.denoiser)
    module.train()
    device, size = accelerator.device, recipe.batch // accelerator.num_processes
    samples, condition = samples.to(device), condition.to(device)
    low, high = state.denoiser.sigma_min, state.denoiser.sigma_max
    penalty = recipe.penalty if recipe.penalty and recipe.penalty.kappa else None
    penalise = None if penalty is None else penalty.term(data.floats(samples))
    while state.step < recipe.steps:
        start = accelerator.process_index * size
        draws = Draws.of_range(recipe.seed, state.step, start, size, device)
        # of dropout alone
        torch.manual_seed(library_seed(recipe.seed, state.step, accelerator.process_index))
        rows = draws.integers("row", len(samples))
        clean, given = data.floats(samples[rows]), condition.rows(rows)
        if recipe.flip:
            mirrored = expand(draws.integers("flip", 2).bool(), clean)
            clean = torch.where(mirrored, clean.flip(-1), clean)
        uniform = draws.uniform("sigma").to(clean.dtype)
        sigma = state.denoiser.round_sigma(recipe.levels.sample(uniform, low, high))
        noise = draws.normal("noise", tuple(clean.shape[1:]), clean.dtype)
        noisy = clean + expand(sigma, clean) * noise
        with accelerator.autocast(), penalty.forward(noisy) if penalty else nullcontext():
            denoised = module(noisy, sigma, given)
        weight = state.denoiser.weight(sigma)
        loss = denoising_loss(denoised, clean, weight)
        if penalise is not None:
            loss = loss + penalise(denoised, noisy, sigma, weight, draws)
        loss = loss.mean()
        accelerator.backward(loss if anchor is None else loss + anchor())
        norm = recipe.optimizer.update(state.optimizer, state.step, recipe.steps)
        state.step += 1
        state.average.update(state.denoiser, state.step * recipe.batch, recipe.batch)
        yield Report(state.step, {"loss": loss.detach()}, norm)


def save_pipeline(denoiser: Karras, folder: Path, card: str) -> None:
    """Write a folder that `instructors.load` and plain diffusers read, with a model card.

    Plain diffusers samples it by Euler's method, `pipeline(num_inference_steps=…)`.
    """
    from diffusers import ConsistencyModelPipeline, EDMEulerScheduler

    network: Any = denoiser.network
    scheduler: Any = EDMEulerScheduler(
        sigma_min=denoiser.sigma_min,
        sigma_max=denoiser.sigma_max,
        sigma_data=denoiser.sigma_data,
    )
    pipeline: Any = ConsistencyModelPipeline(network, scheduler)
    with appearing(folder) as partial:
        pipeline.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
