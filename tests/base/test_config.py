"""Recipes: strict, typed, every fault at once."""

import functools
import os
import re

import pytest

from distill.__main__ import RECIPES, main
from distill.recipe import Recipe
from instil.base.config import load_recipe, merge, read_overrides, read_yaml, validate
from instil.base.config.keys import show
from instil.base.config.recipes import layers, named_recipes, resolve
from instil.base.errors import InstilError, command
from instil.base.levels import KarrasUniform, LogNormal
from instructors.training.train import TrainRecipe
from tests.tools.keys_page import PAGE, page

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
    file.write_text("zero: 010\ntime: 1:30\nname: a\n")
    assert read_yaml(file) == {"zero": "010", "time": "1:30", "name": "a"}
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
            "unknown kind 'sidd', expected ikl, dmd, sid, ",
        ),
        ({"divergence": {"kind": "sid", "alfa": 1}}, "did you mean divergence.alpha"),
        ({"fake": {"optimizer": {"lr": "fast"}}}, "fake.optimizer.lr: input should be a valid num"),
        ({"train": {"steps": True}}, "train.steps: input should be a valid integer, got True"),
        ({"levels": {"sigma_min": 3.0, "sigma_max": 1.0}}, "levels: sigma_min 3.0 must lie below"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr"),
        ({"name": "../x"}, "name: expected letters, digits"),
        ({"fake": {"levels": {"kind": "log_uniform", "rho": 1}}}, "fake.levels.rho: unknown key"),
    ],
)
def test_one_fault_one_line_that_names_it(changes, message):
    (line,) = faults(**changes)
    assert message in line


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("steps", "train.steps"),
        ("max_train_steps", "train.steps"),
        ("seed", "train.seed"),
        ("batch_size", "train.batch"),
        ("mixed_precision", "train.precision"),
        ("gradient_accumulation_steps", "train.accumulation"),
        ("output_dir", "output"),
        ("fake.learning_rate", "fake.optimizer.lr"),
        ("intructor", "instructor"),
    ],
)
def test_names_of_other_trainers_are_known(key, meant):
    (line,) = faults(**read_overrides([f"{key}=1"]))
    assert line == f"{key}: unknown key; did you mean {meant}?"


def test_a_dotted_key_in_a_file_is_spelt_out():
    assert faults(**{"train.steps": 20}) == [
        "train.steps: unknown key; in a file, write `train: {steps: …}`"
    ]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_is_one_of_2_to_the_64(seed):
    assert faults(train={"seed": seed})[0].startswith("train.seed: input should be ")
    assert validate(Recipe, merge(BASE, {"train": {"seed": 2**64 - 1}})).train.seed == 2**64 - 1


@pytest.mark.parametrize("name", ["-x", ".x", "_x", "", "x/y", "a b", "x\n"])
def test_a_run_name_begins_with_a_letter_or_digit(name):
    assert faults(name=name)[0].startswith("name: expected letters, digits")


def test_homes_and_variables_in_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = {"output": "~/runs", "student": {"init": "$HOME/x"}, "evaluation": {"reference": "~/y"}}
    recipe = validate(Recipe, merge(BASE, paths))
    found = recipe.output, recipe.student.init, recipe.evaluation.reference
    assert found == ("/home/me/runs", "/home/me/x", "/home/me/y")
    assert faults(output="$NO_SUCH/x")[0].startswith("output: there is no environment variable $NO")


def test_merge_keys(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("p: {q: &q {<<: &a {lr: 1.0, warmup: 5}, lr: 2.0}}\nc: {<<: [*q, *a], d: 3}\n")
    content = read_yaml(file)
    assert content["p"]["q"] == {"lr": 2.0, "warmup": 5}
    assert content["c"] == {"lr": 2.0, "warmup": 5, "d": 3}


def test_a_recipe_says_only_what_differs_from_the_one_it_extends(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one.yaml").write_text("extends: digits\nlevels: log_normal\n")
    (tmp_path / "two.yaml").write_text("extends: runs/one.yaml\nlevels: {std: 2.0}\nname: two\n")
    monkeypatch.chdir(tmp_path / "runs")
    given = layers("../two.yaml", ["train.steps=7"], RECIPES)
    two = resolve(Recipe, given)
    digits = load_recipe(Recipe, "digits", [], RECIPES)
    levels = LogNormal(std=2.0)
    assert two == digits.replace(
        name="two", levels=levels, train={**dict(digits.train), "steps": 7}
    )
    sources = dict(re.findall(r"^ *(\w+): .*# (.*)$", show(two, given), re.M))
    assert sources["std"] == sources["name"] == "../two.yaml"
    assert sources["mean"] == sources["preflight"] == "default"
    assert sources["instructor"] == "digits"
    assert sources["steps"] == "command line"
    assert "kind: log_normal              # ../runs/one.yaml" in show(two, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: a.yaml", r"extends itself \(\S+a.yaml -> \S+a.yaml\)"),
        ("extends: nowhere.yaml", "a.yaml: extends: .*nowhere.yaml: no such recipe; named ones"),
        ("extends: [digits]", "extends: expected a recipe's name or path, got"),
        ("train: {extends: digits}", "train.extends: unknown key"),
        ("", "a.yaml: is empty; expected keys, such as"),
    ],
)
def test_a_parent_that_is_none(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InstilError, match=message):
        load_recipe(Recipe, str(tmp_path / "a.yaml"), ["name=a", "instructor=digits"], RECIPES)


def test_folders_and_pipes_are_no_recipes(tmp_path):
    with pytest.raises(InstilError, match="is a folder; expected a recipe"):
        load_recipe(Recipe, str(tmp_path), [], RECIPES)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InstilError, match="is no regular file; write the recipe to one"):
        load_recipe(Recipe, str(tmp_path / "pipe"), [], RECIPES)


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

    file = tmp_path / "again.yaml"
    for name in named_recipes(RECIPES):
        recipe = load_recipe(Recipe, name, [], RECIPES)
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        assert load_recipe(Recipe, str(file), [], RECIPES) == recipe
        assert Recipe(**recipe.model_dump()) == recipe == Recipe(**dict(recipe))
        given = layers(name, [], RECIPES)
        assert Recipe(**functools.reduce(merge, (content for _, content in given))) == recipe
        file.write_text(show(recipe, given))
        assert load_recipe(Recipe, str(file), [], RECIPES) == recipe


def test_checking_a_recipe_does_not_load_torch(python):
    code = (
        "import sys; from distill.__main__ import main; "
        "assert main(['--check']) == 0; assert 'torch' not in sys.modules"
    )
    python("-c", code)


def test_the_page_of_keys_is_up_to_date_and_every_key_has_a_text():
    assert PAGE.read_text() == page(), "run python -m tests.tools.keys_page"
    bare = [line for line in page().splitlines() if re.match(r" *\* `.*:\s*$", line)]
    assert bare == []


def test_keys_below_a_prefix(capsys):
    assert main(["--keys", "fake.optimizer"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "* `fake.optimizer` (section): Optimizer of the fake score."
    assert second == "* `fake.optimizer.lr` (number > 0; default 0.0001): Highest learning rate."
    assert main(["--keys", "nothing"]) == 2
    assert "there is no such key" in capsys.readouterr().err


def test_the_stack_below_a_sentence(capsys, monkeypatch):
    @command
    def failing(argv=None):
        assert argv == ["x"]
        try:
            raise KeyError("inner")
        except KeyError:
            raise InstilError("outer") from None

    assert failing(["x"]) == 2
    assert capsys.readouterr().err == "error: outer\n"
    assert failing(["x", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "KeyError: 'inner'" in error
    assert "instil.base.errors.InstilError: outer" in error
    monkeypatch.setenv("INSTIL_DEBUG", "1")
    failing(["x"])
    assert capsys.readouterr().err == error
