"""Recipes: strict, typed, every fault at once."""

import pytest

from distill.recipe import Recipe
from instil.base.config import load_recipe, merge, read_overrides, read_yaml, validate
from instil.base.errors import InstilError
from instil.base.levels import KarrasUniform, LogNormal
from instructors.training.train import TrainRecipe

BASE = {"name": "r", "instructor": "digits"}


def faults(**changes):
    with pytest.raises(InstilError) as caught:
        validate(Recipe, merge(BASE, changes))
    return str(caught.value).splitlines()


def test_numbers_mean_what_people_mean(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("a: 1e-5\nb: 1.0e-5\nc: 50_000\nd: -2.5E3\ne: 1\nf: 1e\n")
    assert read_yaml(file) == {"a": 1e-5, "b": 1e-5, "c": 50_000, "d": -2500.0, "e": 1, "f": "1e"}


def test_no_is_a_word(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("precision: no\nfused: true\nother: null\nplane: off\n")
    assert read_yaml(file) == {"precision": "no", "fused": True, "other": None, "plane": "off"}
    assert read_overrides(["train.precision=no"]) == {"train": {"precision": "no"}}


def test_betas_written_as_integers_are_floats():
    recipe = validate(Recipe, merge(BASE, read_overrides(["optimizer.betas=[0, 0.999]"])))
    assert recipe.optimizer.betas == (0.0, 0.999)
    assert isinstance(recipe.optimizer.betas[0], float)


def test_all_faults_are_reported_at_once_with_dotted_keys():
    lines = faults(train={"stepz": 3, "batch": 1.5}, levels={"kind": "log_normal", "std": -1})
    assert sorted(lines) == [
        "levels.std: input should be greater than 0, got -1",
        "train.batch: input should be a valid integer, got 1.5",
        "train.stepz: unknown key; did you mean train.steps?",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"divergence": "sidd"},
            "unknown kind 'sidd', expected 'ikl', ",
        ),
        ({"divergence": {"kind": "sid", "alfa": 1}}, "did you mean divergence.alpha"),
        ({"fake": {"optimizer": {"lr": "fast"}}}, "fake.optimizer.lr: input should be a valid num"),
        ({"train": {"steps": True}}, "train.steps: input should be a valid integer, got True"),
        ({"levels": {"sigma_min": 3.0, "sigma_max": 1.0}}, "levels: sigma_min 3.0 must lie below"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr"),
        ({"name": "../x"}, "name: string should match pattern"),
        ({"fake": {"levels": {"kind": "log_uniform", "rho": 1}}}, "fake.levels.rho: unknown key"),
    ],
)
def test_one_fault_one_line_that_names_it(changes, message):
    (line,) = faults(**changes)
    assert message in line


def test_missing_key_is_named():
    with pytest.raises(InstilError, match="instructor: missing"):
        validate(Recipe, {"name": "r"})


def test_overrides_on_top_of_a_recipe():
    content = merge(
        {"levels": {"kind": "karras_uniform", "t_min": 0.2}},
        read_overrides(["levels.kind=log_normal", "levels.std=2.0"]),
    )
    assert validate(Recipe, merge(BASE, content)).levels == LogNormal(std=2.0)
    same_kind = merge(
        {"levels": {"kind": "karras_uniform", "t_min": 0.2}}, read_overrides(["levels.rho=3.0"])
    )
    assert validate(Recipe, merge(BASE, same_kind)).levels == KarrasUniform(t_min=0.2, rho=3.0)
    by_name = merge({"levels": "log_normal"}, read_overrides(["levels.std=2.0"]))
    assert validate(Recipe, merge(BASE, by_name)).levels == LogNormal(std=2.0)


def test_changing_one_key_of_a_section_keeps_the_recipes_own_defaults_for_the_rest():
    default = TrainRecipe(data="digits")
    changed = validate(TrainRecipe, {"data": "digits", "optimizer": {"warmup": 7}})
    assert changed.optimizer == default.optimizer.replace(warmup=7)
    assert changed.optimizer.schedule == "cosine"


@pytest.mark.parametrize("text", ["train.steps", "=3", "a b=1", "a=[1"])
def test_malformed_overrides_are_refused(text):
    with pytest.raises(InstilError, match=r"key.path=value|not valid YAML"):
        read_overrides([text])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: 1\na: 2\n", "a: given twice"), ("a: [", "not valid YAML"), ("- 1", "mapping of keys")],
)
def test_unusable_files_are_refused(tmp_path, text, message):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InstilError, match=message):
        read_yaml(file)


def test_a_recipe_survives_its_own_yaml(tmp_path):
    import yaml

    from distill.__main__ import RECIPES

    for path in RECIPES.glob("*.yaml"):
        recipe = load_recipe(Recipe, path.stem, [], RECIPES)
        file = tmp_path / "again.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        assert load_recipe(Recipe, str(file), [], RECIPES) == recipe


def test_checking_a_recipe_does_not_load_torch(python):
    code = (
        "import sys; from distill.__main__ import main; "
        "assert main(['--check']) == 0; assert 'torch' not in sys.modules"
    )
    python("-c", code)
