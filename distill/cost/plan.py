"""The cost of a run before it starts: network evaluations, memory, hours."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from distill.cost.rehearsal import Rehearsal
from distill.recipe import Method, Recipe
from distill.trainer import micro_batch
from instil.base.errors import InstilError
from instil.base.optimizer import trained

# Forward-equivalents; a full backward pass goes through weights and activations.
FORWARD, BACKWARD, ACTIVATIONS = 1, 2, 1
UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}


def forwards_per_update(method: Method, nfe: int = 1, evaluations: int = 1) -> int:
    """Network forward-equivalents of one student update.

    Args:
        method: The recipe of the loop.
        nfe: Network evaluations of the student per sample.
        evaluations: Network evaluations in one call of the instructor.

    The authors' loop for IKL spends 9: two generations, two fake forwards, one instructor forward,
    two full backwards.
    """
    student = nfe * FORWARD + BACKWARD  # backwards through one of them
    fake = (FORWARD + BACKWARD) * method.fake.updates
    instructor, judge = evaluations, 1 if method.fake.guidance == 1 else 2
    if not method.fake.shared:
        fake += judge * FORWARD  # other levels, or guidance: the fake is evaluated again
    if method.divergence.jacobian:
        instructor += evaluations * ACTIVATIONS
        fake += judge * ACTIVATIONS
    return student + instructor + fake


def plan(
    recipe: Recipe, processes: int, speed: float | None = None, images: float | None = None
) -> dict[str, Any]:
    """The facts of a run, for `--dry-run`; weights are neither read nor made.

    Args:
        recipe: The run's recipe.
        processes: The number of processes, one per device.
        speed: Measured images per second of one process, taken as the speed of each.
        images: The number of images the hours are for; None for the recipe's own.

    Returns:
        Facts as sentences; `memory` as `memory()` returns it; `hours` if there is a speed.

    Raises:
        InstilError: The recipe does not fit its instructor, or no micro-batch `train.memory`.
    """
    rehearsal = Rehearsal(recipe)
    recipe = fit_memory(recipe, processes, rehearsal)
    state, instructor, train = rehearsal.state, rehearsal.instructor, recipe.train
    base, evaluations = instructor.denoiser.base(), instructor.denoiser.evaluations
    facts: dict[str, Any] = {
        "instructor": f"{recipe.instructor} ({_numbers(base.parameters())} parameters)",
        "student": f"{type(state.student).__name__} ({_numbers(trained(state.student))} trained)",
        "fake score": f"{_numbers(trained(state.fake))} parameters trained",
        "samples": f"{instructor.denoiser.shape}, {instructor.denoiser.classes} classes",
        "updates": f"{train.steps:,} of {train.batch} images, {train.steps * train.batch:,} in all",
        "per update": f"{forwards_per_update(recipe, state.student.nfe, evaluations)} "
        f"forward-equivalents, {recipe.fake.updates} fake update(s)",
        "processes": f"{processes}, {train.accumulation} micro-batch(es) of "
        f"{micro_batch(recipe, processes)} image(s) each",
        "run folder": f"{recipe.output}/{recipe.name}",
        "memory": memory(recipe, processes, rehearsal),
    }
    if speed:
        facts["hours"] = (images or train.steps * train.batch) / (speed * processes) / 3600
    return facts


def memory(recipe: Recipe, processes: int, rehearsal: Rehearsal) -> dict[str, Any]:
    """Peak bytes of one process during an update.

    Returns:
        `parts`, their sum `peak`, and its growth with the micro-batch: `fixed` and `per_image`.
    """
    images = micro_batch(recipe, processes)
    other = 1 if images > 1 else 2
    parts = _parts(recipe, processes, rehearsal, images)
    peak = sum(parts.values())
    less = sum(_parts(recipe, processes, rehearsal, other).values())
    slope = (peak - less) // (images - other)
    return {"peak": peak, "fixed": peak - slope * images, "per_image": slope, "parts": parts}


def fit_memory(recipe: Recipe, processes: int, rehearsal: Rehearsal) -> Recipe:
    """The recipe with the fewest micro-batches that fit `train.memory`; the same where it is unset.

    Raises:
        InstilError: Not even one image at a time fits.
    """
    if recipe.train.memory is None:
        return recipe
    images = micro_batch(_split(recipe, 1), processes)
    limit = _bytes(recipe.train.memory)
    parts = [number for number in range(2, images + 1) if images % number == 0]

    def needed(number: int) -> int:
        split = _split(recipe, number)
        return sum(_parts(split, processes, rehearsal, micro_batch(split, processes)).values())

    if needed(1) <= limit:  # alone it may need less than two, which keep gradients
        return _split(recipe, 1)
    if (least := needed(images)) > limit:
        raise InstilError(
            f"train.memory: {recipe.train.memory} is less than the {_words(least)} that one image "
            "at a time needs; what is not set yet of fake.lora, student.lora, "
            "train.checkpointing=true, train.averages_on=cpu and train.frozen=bf16 saves some"
        )
    return _split(recipe, parts[bisect_left(parts, -limit, key=lambda number: -needed(number))])


def rows(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The facts of `plan` as a table."""
    needed = facts["memory"]
    lines = {key: value for key, value in facts.items() if isinstance(value, str)}
    lines |= {f"memory: {part}": _words(size) for part, size in needed["parts"].items()}
    lines["memory of a process"] = (
        f"{_words(needed['peak'])}; {_words(needed['fixed'])} and "
        f"{_words(needed['per_image'])} per image of a micro-batch"
    )
    if "hours" in facts:
        lines["hours"] = f"{facts['hours']:,.1f}"
    return [{"what": key, "value": value} for key, value in lines.items()]


def _parts(recipe: Recipe, processes: int, rehearsal: Rehearsal, images: int) -> dict[str, int]:
    """Peak bytes of each part of a process.

    With DDP, gradients live in its buckets and are kept between updates; with accumulation a
    second, summed copy exists.
    """
    several = recipe.train.accumulation > 1
    parts = rehearsal.update(images, first=not several and processes == 1)
    if several and processes > 1:
        for module in (rehearsal.state.student, rehearsal.state.fake):
            parts["gradients"] += sum(p.numel() * p.element_size() for p in trained(module))
    return parts


def _split(recipe: Recipe, number: int) -> Recipe:
    return recipe.replace(train=recipe.train.replace(accumulation=number))


def _numbers(tensors: Iterable[Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors):,}"


def _bytes(text: str) -> int:
    unit = text.lstrip("0123456789. ")
    return int(float(text.removesuffix(unit)) * UNITS[unit])


def _words(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
