"""The recipe section `evaluation`: how samples are measured."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from instil.base.config import Config
from instil.base.config.fields import Location


class Evaluation(Config):
    """How samples are measured.

    Attributes:
        extractor: Feature extractor: `inception`, an embedded name, a `.safetensors` file, or
            `package.module:Class`; None measures nothing.
        weights: Local Inception weight file, for the extractor `inception`.
        reference: Images, a `.npz` of statistics, a data set registered with torch-fidelity, or
            `instructor`: samples of the instructor, so that no image is needed at all.
        held_out: More images of the reference's distribution; their distance is the floor.
        samples: Generated images per measurement.
        seeds: Number of measurements, on disjoint ranges of image seeds; reports give their mean
            and standard deviation.
        instructor_steps: Noise levels of the instructor's Heun sampler; NFE is twice that minus 1.
        every: Updates between two quick measurements during a run; None makes none.
        quick_samples: Images of a quick measurement, from seeds that are never reported. The EMA to
            ship is chosen by quick measurements.
        clip: CLIP model for text models: a folder or hub id. Scored on `quick_samples` images.
        quick_reference: Reference of quick measurements: `reference`, or samples of the
            `instructor`, so that no image takes part in choosing the EMA.
        patience: Number of quick measurements in a row without a new least distance after which a
            run stops. It ships the weights of the least, the start's included; None never stops.
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
