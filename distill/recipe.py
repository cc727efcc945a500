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
from instil.base.levels import KarrasUniform, Levels
from instil.base.optimizer import Adam
from instil.base.runs.recipe import RunRecipe
from instructors.conditions.conditioning import Blending, Conditioning
from instructors.lora import Lora
from students.source import Source

RECIPES = Path(__file__).parent / "recipes"


class StudentSection(Choice):
    """Base of every student's section."""


class OneStep(StudentSection):
    """A copy of the instructor, read once.

    Attributes:
        sigma: The noise level it is read at.
        init: Weights to start from instead of the instructor's: a run, a checkpoint, or one of its
            `.safetensors` files, such as an average.
        lora: Train adapters beside the instructor's own weights; None trains a full copy.
    """

    kind: Literal["one_step"] = "one_step"
    sigma: PositiveFloat = 2.5
    init: str | None = None
    lora: Lora | None = None


class FewStep(StudentSection):
    """A copy of the instructor, read a few times with fresh noise in between.

    Attributes:
        sigmas: The noise levels it is read at, falling.
        lora: As of a one-step student.
    """

    kind: Literal["few_step"] = "few_step"
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (2.5, 0.6)
    lora: Lora | None = None


class Generator(Source, StudentSection):
    """A generator somebody already has, to be refined."""

    kind: Literal["gan"] = "gan"


Students = Annotated[StudentSection, OneOf(OneStep, FewStep, Generator)]


class FakeScore(Config):
    """The fake score and its training.

    Attributes:
        updates: Updates per student update; all after the first see the same samples under fresh
            noise.
        levels: Noise levels of its training. None shares levels, noise and forward pass with the
            divergence, which saves a forward.
        guidance: Scale of classifier-free guidance on the fake in the divergence, 1 for none.
        drop: With guidance, the fraction of its training under the null condition.
        optimizer: Of the fake score.
        warmup: Updates on the student's samples before its first update. A student that does not
            start as the instructor needs them: until the fake score knows its law, the gap to the
            instructor says nothing about it.
        init: Weights to start from instead of the instructor's, as `student.init`.
        lora: Train adapters beside the instructor's own weights; None trains a full copy.
    """

    updates: PositiveInt = 1
    levels: Levels | None = None
    guidance: NonNegativeFloat = 1.0
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    optimizer: Adam = Adam()
    warmup: NonNegativeInt = 0
    init: str | None = None
    lora: Lora | None = None

    @property
    def shared(self) -> bool:
        """Whether one forward serves the divergence and the fake's own training."""
        return self.levels is None and self.guidance == 1


class Train(Config):
    """The loop.

    Attributes:
        steps: Student updates.
        batch: Images per update, over all processes.
        accumulation: Micro-batches per update, on each process.
        memory: Of a device, such as `24 GiB`: takes the fewest micro-batches that fit by the plan,
            whatever `accumulation` says. What the plan does not see needs room beside it.
        precision: Autocast of the networks; None takes what `accelerate launch` was told.
        compile: Compile the networks; the first updates take minutes.
        channels_last: Lay out images with their channels innermost, as tensor cores like it.
        checkpointing: Recompute the activations of denoisers in backward passes, not keep them.
        frozen: Numbers of the instructor's weights, which adapters share; bf16 needs
            precision=bf16, under which it changes nothing.
        seed: Of every random number.
        averages: Half-lives, in images, of the averages of the student that are kept.
        averages_on: Where they are kept: on the CPU they are copied for every measurement.
        rampup: A half-life is at most this fraction of the images seen so far.
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
    seed: Annotated[int, Field(ge=0)] = 0
    averages: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (10_000.0, 50_000.0)
    averages_on: Literal["device", "cpu"] = "device"
    rampup: PositiveFloat = 0.05


class Method(Config):
    """What the student's weights depend on, beside the networks it starts from.

    Attributes:
        divergence: What the student minimises.
        levels: Noise levels of the divergence.
        optimizer: Of the student.
        fake: The fake score.
        train: The loop.
    """

    divergence: Divergences = SiD()
    levels: Levels = KarrasUniform(t_min=0.2)
    optimizer: Adam = Adam()
    fake: FakeScore = FakeScore()
    train: Train = Train()


class Recipe(RunRecipe, Method):
    """A whole run: a method, what it is applied to, and what is kept of it.

    Attributes:
        instructor: As `instructors.load.load` takes it; fake and student are copies of it.
        preflight: A file of `python -m eval preflight`; what it settles replaces what the recipe
            says, and is replaced by the command line.
        side: Height and width of its samples, for networks that take any; None for its own.
        conditioning: What it is asked for.
        blend: Further instructors.
        student: What is trained.
        evaluation: How samples are judged.
        pictures_every: Updates between two grids of samples.
        trackers: Such as tensorboard, wandb, trackio.
    """

    instructor: str
    preflight: str | None = None
    side: PositiveInt | None = None
    conditioning: Conditioning = Conditioning()
    blend: Blending | None = None
    student: Students = OneStep()
    evaluation: Evaluation = Evaluation()
    pictures_every: PositiveInt = 500
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    # What may differ when a run is resumed: nothing a weight depends on, but for the order of sums.
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
