"""What a recipe will cost, before it costs anything."""

from distill.recipe import Method, Recipe
from instructors.load import Instructor
from students.student import Student

# A backward pass through weights and activations counts as two forwards, one through activations
# alone as one.
FORWARD, BACKWARD, ACTIVATIONS = 1, 2, 1


def forwards_per_update(method: Method, nfe: int = 1, evaluations: int = 1) -> int:
    """Network forward-equivalents of one student update.

    Args:
        method: The recipe's.
        nfe: Evaluations of the student's network per sample.
        evaluations: Of networks in one call of the instructor.

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
    recipe: Recipe, instructor: Instructor, student: Student, processes: int
) -> dict[str, str]:
    """The facts of a run, in words, for `--dry-run`."""
    parameters = sum(p.numel() for p in instructor.denoiser.base().parameters())
    evaluations = instructor.denoiser.evaluations
    own = sum(p.numel() for p in student.parameters())
    # float32 weights; of student and fake their gradients and two moments too.
    numbers = parameters * (1 + 4) + own * (4 + len(recipe.train.averages))
    return {
        "instructor": f"{recipe.instructor} ({parameters:,} parameters, {instructor.card.sha256})",
        "student": f"{type(student).__name__} ({own:,} parameters)",
        "samples": f"{instructor.denoiser.shape}, {instructor.denoiser.classes} classes",
        "updates": f"{recipe.train.steps:,} of {recipe.train.batch} images, "
        f"{recipe.train.steps * recipe.train.batch:,} in all",
        "per update": f"{forwards_per_update(recipe, student.nfe, evaluations)} "
        f"forward-equivalents, "
        f"{recipe.fake.updates} fake update(s)",
        "processes": str(processes),
        "weights, gradients, moments": f"{numbers * 4 / 2**20:,.1f} MiB per process",
        "run folder": f"{recipe.output}/{recipe.name}",
    }
