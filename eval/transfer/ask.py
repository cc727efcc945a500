"""`python -m eval transfer`: should this instructor be adapted to those images, and how?"""

from eval.answer import Answer
from eval.questions import Transfer as Question
from eval.transfer.cross_validate import cross_validate, recipe_of, refit
from eval.transfer.plot import transfer_curves
from instil.base import data
from instil.base.errors import InstilError
from instil.base.files import check_output
from instil.base.runs.accelerator import accelerator_for
from instructors.load import load


def ask(question: Question) -> Answer:
    """The arms in held-out nats, the verdict, and the winner in a folder if one is named.

    Raises:
        InstilError: Instructor or images cannot be loaded, do not fit, or share images.
    """
    if question.out and question.out.exists():
        raise InstilError(f"--out {question.out}: exists; name a new folder")
    check_output("--out", question.out)
    check_output("--plot", question.plot, ".png")
    recipe = recipe_of(question)
    images, instructor = data.load(question.target), load(question.instructor)
    accelerator = accelerator_for(recipe.precision, (), ".")
    result = cross_validate(instructor, images, question, recipe, accelerator)
    answer = result.answer()
    if question.plot:
        transfer_curves(result, question.plot)
    if question.out:
        refit(instructor, result, recipe, accelerator, question.out, question.command)
        answer.facts["out"] = str(question.out)
    return answer
