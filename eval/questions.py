"""The questions of `python -m eval`: one typed model per command, whose fields are the options."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt, model_validator

from instil.base.config import Config
from instil.base.errors import InstilError
from instructors.transfer import Arm

Reference = Literal["gaussian", "zero", "standard"]
LEAST_FOLDS = 5  # a reference is fitted without a fifth of the images, where no fold is trained
MORE_THAN_ONE = Field(ge=2)


class Question(Config):
    """Base of all questions.

    Attributes:
        command: The command line that asked, for reports and model cards; no option.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    command: str = ""


class Fid(Question):
    """Distance of images, or of an instructor's samples, to a reference."""

    images: str | None = None
    """Images: a folder, .zip, .npz or data set."""
    student: str | None = None
    """Student whose samples are measured: a folder that a run has written, or an embedded name."""
    instructor: str | None = None
    """Instructor whose samples are measured: a folder, embedded name or hub id."""
    reference: str
    """Images, a .npz of mu and sigma, a name torch-fidelity knows such as cifar10-train, or (with
    --instructor) `instructor`: its own samples."""
    extractor: str = "inception"
    """Feature extractor: inception, dinov2, clip, digits, or a file; several with commas between
    (of --images or --student)."""
    weights: str | None = None
    """Local file of torch-fidelity's Inception weights."""
    protocol: Literal["tf1-compat", "pytorch-fid", "clean"] = "tf1-compat"
    """Tool whose resizing Inception follows: torch-fidelity, like the TensorFlow original,
    pytorch-fid, or clean-fid."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode image files."""
    batch: PositiveInt = 32
    """Image files decoded, or images drawn, at once."""
    save_stats: Path | None = None
    """File .npz to write the statistics of the reference to."""
    held_out: str | None = None
    """More images of the reference's distribution; their distance is the floor."""
    samples: Annotated[int, MORE_THAN_ONE] = 10_000
    """Images per sampling seed."""
    seeds: PositiveInt = 3
    """Sampling seeds."""
    prompts: str | None = None
    """File of prompts, as `conditioning.prompts`, for a text model."""
    guidance: FiniteFloat = 1.0
    """Guidance of the instructor."""
    steps: PositiveInt = 18
    """Steps of Heun's method."""
    record: bool = False
    """Keep the figures in the instructor's folder and card."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.record and not self.instructor:
            raise InstilError("--record: figures are kept with an instructor; give --instructor")
        if sum(each is not None for each in (self.images, self.student, self.instructor)) != 1:
            raise InstilError("--images, --student or --instructor: expected exactly one of them")
        if self.instructor and "," in self.extractor:
            raise InstilError("--extractor: several are for --images or --student; give one")
        return self


class Extractor(Question):
    """Train an offline feature extractor."""

    data: str
    """Training images with classes."""
    held_out: str
    """Images with classes for the accuracy."""
    out: Path
    """File to write, ending in .safetensors."""
    seed: int = 0
    """Seed of weights and batches."""


class Clip(Question):
    """CLIP score: how well images fit their prompts."""

    images: str
    """Images: a folder, .zip, .npz or data set."""
    prompts: str
    """File of prompts, as `conditioning.prompts`, in the order of the images."""
    model: str
    """CLIP model: a folder or hub id."""


class Latents(Question):
    """What a frozen latent space costs on other data: reuse it, mix it or relearn it?"""

    source: str
    """Images the latent space was made for."""
    target: str
    """Images it would be used on."""
    dim: PositiveInt | None = None
    """Number of principal directions; without it, as many as both data sets need."""
    autoencoder: str | None = None
    """Folder of a diffusers autoencoder, in place of principal directions."""
    sigma: PositiveFloat = 0.5
    """Lowest noise level of use, in units of images in [-1, 1]."""
    nats: PositiveFloat = 1.0
    """Tolerance: nats an image that the latent space may cost."""
    seed: int = 0
    """Seed of the split into training and held-out images."""
    plot: Path | None = None
    """PNG to draw the prices in."""

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if self.dim is not None and self.autoencoder is not None:
            raise InstilError("--dim: an autoencoder has a size of its own; leave one of them out")
        return self


class Horizon(Question):
    """Noise level up to which a diffusion model is worth running."""

    model: str
    """Instructor, or with --folds above 1 the recipe that trains it."""
    data: str | None = None
    """Images; without them the instructor's own samples, or the recipe's data."""
    folds: PositiveInt = 5
    """Trainings, each without its share of the images; 1 measures a trained model as it is, on
    images it was not trained on."""
    reference: Reference = "gaussian"
    """Distribution the diffusion would start from: gaussian, zero or standard."""
    trained_on: str | None = None
    """Training images of the model, where its card names none."""
    tolerance: PositiveFloat = 0.02
    """Tolerance of T_eps in nats an image."""
    lowest: PositiveFloat = 0.02
    """Lowest noise level, in units of images in [-1, 1]."""
    samples: int = 1000
    """Largest number of images that are measured."""
    draws: PositiveInt = 2
    """Noise draws per image and noise level."""
    seed: int = 0
    """Seed of folds, noise and generated images."""
    bound: bool = False
    """Also print the paper's bound, on the training images."""
    subgaussian: PositiveFloat | None = None
    """Sub-Gaussian constant R of --bound, beside 0.1, 1, 10 and 100."""
    kappas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    """Strengths of the recipe's penalty to choose from, with commas between; 0 is always tried."""
    plot: Path | None = None
    """PNG to draw the certificate in."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe."""

    @model_validator(mode="after")
    def _fits_folds(self) -> Self:
        least = 2 * max(self.folds, LEAST_FOLDS)
        if self.samples < least:
            raise InstilError(f"--samples {self.samples}: expected {least} or more")
        if self.subgaussian is not None and not self.bound:
            raise InstilError("--subgaussian: a constant of --bound; give both or neither")
        if self.folds > 1:
            if self.bound:
                raise InstilError("--bound: for a trained model and its images; give --folds 1")
            if self.trained_on is not None:
                raise InstilError("--trained-on: folds are trained on --data; leave it out")
        elif self.kappas is not None or self.overrides:
            name = "--kappas" if self.kappas is not None else self.overrides[0]
            raise InstilError(f"{name}: nothing is trained with --folds 1")
        return self


class VaeBound(Question):
    """Generalisation bound of a VAE, vacuous as a rule.

    It can show how the terms grow while a VAE is trained; it cannot tell whether a VAE is good, nor
    choose between two. The bounded loss, measured directly, stands beside it.
    """

    autoencoder: str
    """Folder of a diffusers AutoencoderKL; `mlp` trains a small one first."""
    trained_on: str
    """Training images of the autoencoder."""
    data: str
    """Other images."""
    weight_noise: PositiveFloat = 0.05
    """Standard deviation of the noise on the decoder's weights."""
    samples: Annotated[int, MORE_THAN_ONE] = 1000
    """Largest number of images of either set that are measured."""
    draws: PositiveInt = 8
    """Noise draws per image."""
    seed: int = 0
    """Seed of weights and noise."""


class Arms(Question):
    """Base of the questions that compare arms of a transfer."""

    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] = ("scratch", "frozen", "finetune")
    """Arms to compare, with commas between: scratch, frozen, finetune, finetune-l2, lora."""
    folds: Annotated[int, MORE_THAN_ONE] | None = None
    """Folds of the cross-validation; without it 10 below 200 images, else 5."""
    samples: Annotated[int, Field(ge=4)] | None = None
    """Largest number of target images, chosen at random; without it all."""
    draws: PositiveInt = 2
    """Noise draws per image and noise level."""
    seed: int = 0
    """Seed of folds, noise and chosen images."""
    overrides: tuple[str, ...] = ()
    """Changes to how the arms are trained, such as steps=300."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(set(self.arms)) < len(self.arms):
            raise InstilError(f"--arms {','.join(self.arms)}: expected each once")
        return self


class Transfer(Arms):
    """Whether an instructor helps on other images, and how to adapt it."""

    instructor: str
    """Instructor to adapt."""
    target: str
    """Images of one's own."""
    plot: Path | None = None
    """PNG to draw the arms in."""
    out: Path | None = None
    """New folder for the best arm, fitted to all images."""


class Preflight(Arms):
    """Latents, horizon and transfer at once, and what follows for a distillation."""

    instructor: str
    """Instructor to distil."""
    target: str | None = None
    """Images of one's own."""
    source: str | None = None
    """Images the instructor was made for; without them those its card names."""
    out: Path
    """JSON file for `distill … preflight=FILE.json`; the adapted instructor goes beside it."""
