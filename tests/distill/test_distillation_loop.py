"""A distillation driven from Python: the loop, its students, and objects in place of names."""

import json

import pytest
import torch

from distill.__main__ import main
from distill.build import full_copy
from distill.distillation import Distillation
from distill.recipe import Recipe
from eval.quality import features
from instil.base.config import validate
from instructors.instructor import Instructor
from instructors.load import load
from students.load import load as load_student
from students.one_step import OneStep
from students.source import Source

EVALUATION = {"samples": 20, "quick_samples": 20, "seeds": 1, "instructor_steps": 2, "every": 2}
EVALUATION |= {"reference": "digits:held-out"}


@pytest.fixture
def recipe(on_tiny):
    """Make the recipe of a tiny run; sections of the caller's win."""

    def make(**changes):
        content = {"name": "loop", "train": {"steps": 4, "batch": 8, "averages": [0, 100]}}
        for word in on_tiny[1:]:
            key, _, value = word.partition("=")
            content[key] = value
        return validate(Recipe, content | changes)

    return make


def test_a_loop_left_early_ends_as_the_command_does(
    recipe, on_tiny, tmp_path, weights, assert_same
):
    run = Distillation(recipe())
    for update in run:
        if update.step == 2:
            break
    assert (run.state.step, run.report) == (2, None)
    run.export(tmp_path / "early")
    assert load_student(Source(weights=str(tmp_path / "early"))).sample([0]).shape == (1, 1, 8, 8)
    assert [update.step for update in run] == [3, 4]
    assert run.finish() is run.report
    assert json.loads((run.folder / "report.json").read_text()) == run.report
    torch.testing.assert_close(
        run.student.sample(seeds=[3]),
        load_student(Source(weights=str(run.folder / "student"))).sample(seeds=[3]),
        rtol=0,
        atol=1e-5,
    )
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text((run.folder / "recipe.yaml").read_text())
    assert main([str(recipe_file), "name=command"]) == 0
    assert_same(weights(run.folder), weights(tmp_path / "runs" / "command"))


def test_objects_stand_in_for_names(recipe, on_tiny, weights, assert_same):
    named = Distillation(recipe(evaluation=EVALUATION | {"extractor": "digits"}))
    named.finish()
    instructor = load(on_tiny[1].partition("=")[2])
    given = recipe(evaluation=EVALUATION, instructor="in memory")
    extractor = features.load("digits")
    student = OneStep(full_copy(instructor.denoiser), 2.5)
    passed = Distillation(
        given, instructor=instructor.denoiser, student=student, extractor=extractor
    )
    assert passed.state.student is student
    report = passed.finish()
    assert_same(weights(named.folder), weights(passed.folder))
    assert report["student"]["fd"] == named.report["student"]["fd"]
    assert report["start"]["nfe"] == 1  # what a student of one's own was is measured too


def test_a_denoiser_in_memory_has_a_hash_of_its_weights(on_tiny):
    denoiser = load(on_tiny[1].partition("=")[2]).denoiser
    first = Instructor.of(denoiser, "mine").card.sha256
    assert Instructor.of(full_copy(denoiser), "mine").card.sha256 == first
    with torch.no_grad():
        next(denoiser.parameters()).flatten()[0] += 1
    assert Instructor.of(denoiser, "mine").card.sha256 != first
