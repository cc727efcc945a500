"""The parts that recipes of different trainings have in common; they load without torch."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveInt

from instil.base.config import Config
from instil.base.config.fields import Location, RunName, Seed


class RunRecipe(Config):
    """Base of every recipe that makes a run: its folder, and when something is written there.

    Attributes:
        name: The name of the run's folder.
        output: The folder of all runs.
        log_every: Updates between two lines of numbers.
        save_every: Updates between two checkpoints.
        keep: The number of checkpoints that are kept.
        MAY_CHANGE: Keys that may differ when a run is resumed, since no weight depends on them.
    """

    name: RunName
    output: Location = "runs"
    log_every: PositiveInt = 50
    save_every: PositiveInt = 500
    keep: PositiveInt = 2

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("output", "log_every", "save_every", "keep")


class ImageTraining(Config):
    """Base of trainings on images.

    Attributes:
        steps: Updates.
        batch: Images per update, over all processes.
        precision: Autocast of the networks; null takes the setting of `accelerate launch`.
        seed: The seed of every random number.
        average: The half-life, in images, of the EMA that is kept.
    """

    steps: PositiveInt = 10_000
    batch: PositiveInt = 128
    precision: Literal["no", "bf16"] | None = None
    seed: Seed = 0
    average: NonNegativeFloat = 20_000.0
