"""The typed recipe of a distillation. The union types are the registry of what can be chosen."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from distill.divergences import Divergences, SiD
from eval.quality.evaluation import Evaluation
from instil.base.config import Choice, Config, OneOf
from instil.base.config.fields import Location, Seed
from instil.base.levels import KarrasUniform, Levels
from instil.base.optimizer import Adam
from instil.base.runs.recipe import RunRecipe
from instructors.conditions.conditioning import Blending, Conditioning
from instructors.files.source import Named
from instructors.lora import Lora
from students.source import Source

RECIPES = Path(__file__).parent / "recipes"


class StudentSection(Choice):
    """Base of every student in a recipe; subclasses are the kinds."""


class OneStep(StudentSection):
    """A copy of the instructor, evaluated once.

    Attributes:
        sigma: Noise level at which the copy is evaluated.
        init: Initial weights other than the instructor's: a run, a checkpoint, or one of its
            `.safetensors` files, such as an EMA.
        lora: Low-rank adapters to train on frozen weights; null trains all weights.
    """

    kind: Literal["one_step"] = "one_step"
    sigma: PositiveFloat = 2.5
    init: Location | None = None
    lora: Lora | None = None


class FewStep(StudentSection):
    """A copy of the instructor, evaluated a few times with fresh noise in between.

    Attributes:
        sigmas: Noise levels at which the copy is evaluated, in falling order.
        lora: Low-rank adapters to train on frozen weights; null trains all weights.
    """

    kind: Literal["few_step"] = "few_step"
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (2.5, 0.6)
    lora: Lora | None = None


class Generator(Source, StudentSection):
    """A trained generator, to be refined."""

    kind: Literal["gan"] = "gan"


Students = Annotated[StudentSection, OneOf(OneStep, FewStep, Generator)]


class FakeScore(Config):
    """The fake score and its training.

    Attributes:
        updates: Fake-score updates per student update, all on the same samples with fresh noise.
        levels: Noise levels of the fake score's training; null shares levels, noise and forward
            pass with the divergence, which saves a forward pass.
        guidance: Scale of classifier-free guidance on the fake score in the divergence; 1 for none.
        drop: Fraction of the fake score's training under the null condition, if it is guided.
        optimizer: Optimizer of the fake score.
        warmup: Fake-score updates before the first student update. Needed when the student is not a
            copy of the instructor (a GAN): the gap is meaningless until the fake score has learnt
            the student's distribution.
        init: Initial weights other than the instructor's: a run, a checkpoint, or one of its
            `.safetensors` files.
        lora: Low-rank adapters to train on frozen weights; null trains all weights.
    """

    updates: PositiveInt = 1
    levels: Levels | None = None
    guidance: NonNegativeFloat = 1.0
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    optimizer: Adam = Adam()
    warmup: NonNegativeInt = 0
    init: Location | None = None
    lora: Lora | None = None

    @property
    def shared(self) -> bool:
        """Whether the divergence and the fake score's training share one forward pass."""
        return self.levels is None and self.guidance == 1


class Train(Config):
    """The training loop.

    Attributes:
        steps: Number of student updates.
        batch: Images per update, summed over all processes.
        accumulation: Micro-batches per update on each process.
        memory: Memory per device, such as `24 GiB`. If given, `accumulation` is replaced by the
            fewest micro-batches that the plan of `--dry-run` fits into it; leave some room for
            what the plan does not count.
        precision: Autocast of the networks; null takes the setting of `accelerate launch`.
        compile: Whether networks are compiled; the first updates then take minutes.
        channels_last: Whether images are laid out with channels innermost, which is faster on
            tensor cores.
        checkpointing: Whether backward passes recompute the denoisers' activations, which takes
            time and saves memory.
        frozen: Precision of the instructor's weights, which adapters share; bf16 needs
            `train.precision=bf16`, and then changes no result.
        seed: Seed of all random numbers of the run.
        averages: Half-lives, in images, of the EMAs of the student.
        averages_on: Device of the EMAs; on the CPU they are copied for each measurement.
        rampup: Largest half-life of an EMA, as a fraction of the images seen so far.
    """

    steps: PositiveInt = 2_000
    batch: PositiveInt = 128
    accumulation: PositiveInt = 1
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[MG]i?B$")] | None = None
    precision: Literal["no", "bf16"] | None = None
    compile: bool = False
    channels_last: bool = False
    checkpointing: bool = False
    frozen: Literal["float32", "bf16"] = "float32"
    seed: Seed = 0
    averages: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (10_000.0, 50_000.0)
    averages_on: Literal["device", "cpu"] = "device"
    rampup: PositiveFloat = 0.05


class Method(Config):
    """Everything the student's weights depend on, except the networks at the start.

    Attributes:
        divergence: Divergence that the student minimises.
        levels: Noise levels of the divergence.
        optimizer: Optimizer of the student.
        fake: Fake score and its training.
        train: Training loop.
    """

    divergence: Divergences = SiD()
    levels: Levels = KarrasUniform(t_min=0.2)
    optimizer: Adam = Adam()
    fake: FakeScore = FakeScore()
    train: Train = Train()


class Recipe(RunRecipe, Method):
    """A whole distillation: the method, the models it is applied to, and what is written.

    Attributes:
        instructor: Model to distil: a folder, a hub id (`ID@REVISION`), an embedded name, or a
            mapping of source, revision, variant and subfolder.
        preflight: File written by `python -m eval preflight --out`; its choices replace those of
            the recipe, and the command line replaces both.
        side: Height and width of samples, for networks of any size; null for the network's own.
        allow_distilled: Whether to go on with an instructor that looks like a model distilled for
            few steps, such as a turbo or LCM model.
        conditioning: Conditions the instructor is given.
        blend: Further instructors, whose scores are added.
        student: Student to train.
        evaluation: Measurements of the student and the instructor.
        pictures_every: Updates between two pictures of samples, each with the gauges of both
            networks; null for no pictures and no gauges.
        trackers: Services that record the run's numbers.
    """

    instructor: Named
    preflight: Location | None = None
    side: PositiveInt | None = None
    allow_distilled: bool = False
    conditioning: Conditioning = Conditioning()
    blend: Blending | None = None
    student: Students = OneStep()
    evaluation: Evaluation = Evaluation()
    pictures_every: PositiveInt | None = 500
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    # Keys that may differ when a run is resumed: no weight depends on them, up to rounding.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "train.steps",
        "train.accumulation",
        "train.memory",
        "train.checkpointing",
        "train.averages_on",
        "evaluation",
        *RunRecipe.MAY_CHANGE,
        "pictures_every",
        "trackers",
    )
