"""Measures samples as an `Evaluation` says, beside the instructor's figures and the floor."""

import hashlib
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from eval.quality import features, metrics
from eval.quality.evaluation import Evaluation
from eval.quality.extraction import Features, extract, kept
from eval.quality.images import Sampler, generate, instructor_sampler, sampled
from eval.quality.sources import of_images
from instil.base import data
from instil.base.errors import InstilError
from instil.base.files import cache_folder
from instil.base.processes import on_main
from instil.base.runs.monitor import cache_may_fail
from instil.base.runs.report import environment, write_json
from instil.base.untrusted import read_json
from instructors.instructor import Instructor

# Image seeds: measurement k uses the block [k N, (k + 1) N), as EDM's does. Blocks far above are
# for what is never reported (choosing a checkpoint) and for references made of samples.
QUICK_SEEDS = 10**9
REFERENCE_SEEDS = 2 * 10**9
FLOOR_SEEDS = 3 * 10**9
FIGURES = "figures.json"


class Evaluator:
    """The measuring device of one run; all input is read and checked when it is made.

    Under several processes each of them makes one and calls the same methods in the same order:
    they share the work, and each has the result.

    Args:
        evaluation: What is measured, and on how many images.
        instructor: The instructor; its samples are the reference where `evaluation` says so.
        device: Where networks run.
        extractor: Used instead of what `evaluation.extractor` names.

    Raises:
        InstilError: The extractor or the reference is missing or does not fit the instructor.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        instructor: Instructor,
        device: torch.device,
        extractor: features.Extractor | None = None,
    ) -> None:
        self.evaluation, self.instructor, self.device = evaluation, instructor, device
        if extractor is None:
            if evaluation.extractor is None:
                raise InstilError("evaluation.extractor: unset, so nothing can be measured")
            weights = Path(evaluation.weights) if evaluation.weights else None
            extractor = features.load(evaluation.extractor, weights, device.type)
        self.extractor = extractor
        self.reference = self._reference(evaluation.reference, evaluation.samples)
        self.quick_reference = self.reference
        if evaluation.quick_reference == "instructor":
            self.quick_reference = self._reference("instructor", evaluation.quick_samples)
        self.held_out = self._held_out()

    @property
    def name(self) -> str:
        """What the distance is called: FID, or FD-<extractor>-<hash>."""
        return self.extractor.name

    def score(self, sampler: Sampler) -> dict[str, Any]:
        """Measure a sampler as `evaluation` says.

        Returns:
            `{figure: {mean, std, n, seeds}, …}`: those of `metrics.measure`, and `fd_matched`, the
            distance on as many images as the floor is measured on, where there is a floor.
        """
        count, classes = self.evaluation.samples, self.instructor.denoiser.classes
        floor_n = 0 if self.held_out is None else len(self.held_out)
        found, matched = [], []
        for block in range(self.evaluation.seeds):
            start = block * count
            labels = torch.arange(start, start + count) % classes if classes else None
            features = self._features(sampler, start, count)
            found.append(metrics.figures(features, self.reference, labels))
            if 0 < floor_n <= count:
                few = metrics.distance_of(features.values[:floor_n], self.reference)
                matched.append({"fd_matched": few})
        result = metrics.spread(found, count)
        return result | (metrics.spread(matched, floor_n) if matched else {})

    def quick(self, sampler: Sampler) -> float:
        """The distance alone, on few samples of seeds that are never reported."""
        features = self._features(sampler, QUICK_SEEDS, self.evaluation.quick_samples)
        return metrics.distance_of(features.values, self.quick_reference)

    def floor(self) -> dict[str, Any]:
        """What images of the reference's own law score: `floor` and `floor_n`, None if unknown."""
        if self.held_out is None:
            return {"floor": None, "floor_n": None}
        distance = metrics.distance_of(self.held_out.values, self.reference)
        return {"floor": distance, "floor_n": len(self.held_out)}

    def instructor_figures(self, record: bool = False) -> dict[str, Any]:
        """`score` of the instructor's own sampler; its `quick` distance, if to the reference, too.

        Computed once per weights and evaluation.

        Args:
            record: Keep it in the instructor's folder, not in the user's cache.
        """
        figures = self._figures(record)
        if self.quick_reference is not self.reference:  # the kept one is against the reference
            figures = {key: value for key, value in figures.items() if key != "quick"}
        return figures

    def _figures(self, record: bool) -> dict[str, Any]:
        key = self._key("figures")
        shipped = self.instructor.card.folder / FIGURES
        cache = shipped if record else cache_folder() / FIGURES
        known = on_main(lambda: _read(cache) | _read(shipped))
        if key in known:
            return known[key]["figures"]
        steps = self.evaluation.instructor_steps
        few = self._features(self.sampler(), QUICK_SEEDS, self.evaluation.quick_samples)
        quick = metrics.distance_of(few.values, self.reference)
        figures = self.score(self.sampler()) | {"quick": quick}
        nfe = (2 * steps - 1) * self.instructor.denoiser.evaluations
        about = {"protocol": self.describe(), "nfe": nfe, "environment": environment()}

        def keep() -> None:
            with nullcontext() if record else cache_may_fail():
                cache.parent.mkdir(parents=True, exist_ok=True)
                write_json(cache, _read(cache) | {key: about | {"figures": figures}})

        on_main(keep)
        return figures

    def sampler(self) -> Sampler:
        """The instructor's own."""
        instructor, steps = self.instructor, self.evaluation.instructor_steps
        return instructor_sampler(instructor.denoiser, steps, instructor.prior, instructor.codec)

    def speed(self, sampler: Sampler) -> float:
        """Images per second of one process, by one batch to warm up and one to measure."""
        batch = self.evaluation.batch
        generate(sampler, QUICK_SEEDS, batch, self.device, batch)
        start = time.perf_counter()
        generate(sampler, QUICK_SEEDS, batch, self.device, batch)
        return batch / (time.perf_counter() - start)

    def describe(self) -> str:
        """Extractor, numbers and reference in one sentence, for reports."""
        samples, seeds = self.evaluation.samples, self.evaluation.seeds
        return (
            f"{self.name}, {samples} images x {seeds} sampling seeds against {self.reference.name}"
        )

    def _reference(self, source: str, samples: int) -> metrics.Reference:
        if source == "instructor":
            features = self._instructor_samples(REFERENCE_SEEDS, samples)
            name = f"samples of {self.instructor.card.source}"
            return metrics.reference_of_features(features, name, self.extractor)
        reference = metrics.load_reference(source, self.extractor)
        made = self.instructor.codec.image_shape(self.instructor.denoiser.shape)
        if reference.images and reference.images.shape[-2:] != made[-2:]:
            raise InstilError(
                f"evaluation.reference: {source} has images of the shape "
                f"{reference.images.shape}, the instructor makes {made}"
            )
        return reference

    def _held_out(self) -> Features | None:
        """Features of more images of the reference's distribution, None where there are none."""
        if self.evaluation.held_out is not None:
            return extract(of_images(data.load(self.evaluation.held_out)), [self.extractor])[0]
        if self.evaluation.reference == "instructor":
            return self._instructor_samples(FLOOR_SEEDS, self.evaluation.samples)
        return None

    def _instructor_samples(self, start: int, count: int) -> Features:
        """Features of samples of the instructor, cached."""
        key = self._key(f"samples {start} {count} {self.extractor.identity}")
        return kept(key, lambda: self._features(self.sampler(), start, count))

    def _features(self, sampler: Sampler, start: int, count: int) -> Features:
        batch = self.evaluation.batch
        made = sampled(sampler, "samples", start, count, self.device, batch)
        return extract(made, [self.extractor])[0]

    def _key(self, purpose: str) -> str:
        """A key that changes with weights, sampler, seeds, extractor and reference."""
        facts: dict[str, Any] = {
            "purpose": purpose,
            "weights": self.instructor.card.sha256,
            "steps": self.evaluation.instructor_steps,
            "samples": self.evaluation.samples,
        }
        if purpose == "figures":
            facts |= {
                "seeds": self.evaluation.seeds,
                "quick_samples": self.evaluation.quick_samples,
                "held_out": self.evaluation.held_out,
                "extractor": self.name,
                "reference": self.reference.name,
            }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
