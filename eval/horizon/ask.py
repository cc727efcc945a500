"""`python -m eval horizon`: how far must the diffusion run?"""

from typing import Any

from eval.answer import Answer, Rows
from eval.horizon.bound import bound_of
from eval.horizon.plot import horizon_curve
from eval.horizon.pretrained import measure_pretrained
from eval.horizon.recipes import choose_kappa, measure_recipe
from eval.questions import Horizon
from instil.base.files import check_output


def ask(question: Horizon) -> Answer:
    """The horizon of a trained model, or of what a recipe trains.

    Raises:
        InstilError: Something cannot be loaded, does not fit, or was trained on.
    """
    check_output("--plot", question.plot, ".png")
    tried: Rows = []
    more: dict[str, Any] = {}
    if question.folds == 1:
        measured = measure_pretrained(question)
    elif question.kappas is None:
        measured = measure_recipe(question)
    else:
        measured, tried, more["kappa"] = choose_kappa(question)
    if question.plot:
        horizon_curve(measured.horizon, question.plot)
    answer = measured.answer()
    answer.rows.extend(tried)
    answer.facts.update(more)
    if question.bound:
        rows, answer.facts["bound"] = bound_of(measured, question)
        answer.rows.extend(rows)
    return answer
