"""How samples are judged, as a recipe section; `eval.quality.yardstick` carries it out."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from instil.base.config import Config
from instil.base.config.fields import Location


class Protocol(Config):
    """The measuring protocol of a run.

    Attributes:
        extractor: As `eval.quality.features.load` takes it; None measures nothing.
        weights: A local Inception weight file, for the extractor `inception`.
        reference: Images, a `.npz` of statistics, a data set registered with torch-fidelity, or
            `instructor`: samples of the instructor, so that no image is needed at all.
        held_out: Images of the same law as the reference, for the same-distribution floor.
        samples: Generated images per measurement.
        seeds: Measurements, on disjoint ranges of image seeds; mean and standard deviation.
        instructor_steps: Noise levels of the instructor's Heun sampler; NFE is twice that minus 1.
        every: Updates between two quick measurements during a run; None makes none.
        quick_samples: Images of a quick measurement, from seeds that are never reported. The
            average that is shipped is chosen on them.
        clip: A CLIP model, for text models: a folder or hub id. Scored on `quick_samples` images.
        quick_reference: What they are compared with: the reference, or samples of the instructor,
            so that no image chooses what is shipped.
        patience: Quick measurements in a row without a new least distance after which a run stops;
            it ships the weights of the least, the start's included. None runs to the end.
        batch: Images generated at once.
    """

    extractor: Location | None = None
    weights: Location | None = None
    reference: Location = "instructor"
    held_out: Location | None = None
    samples: Annotated[int, Field(ge=2)] = 10_000
    seeds: PositiveInt = 3
    instructor_steps: PositiveInt = 18
    every: PositiveInt | None = None
    quick_samples: Annotated[int, Field(ge=2)] = 2_000
    clip: Location | None = None
    quick_reference: Literal["reference", "instructor"] = "reference"
    patience: PositiveInt | None = None
    batch: PositiveInt = 250
