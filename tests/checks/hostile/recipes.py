"""Recipes: values drawn by the schema of the real one, with mistakes, as YAML and as key=value."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from distill.__main__ import RECIPES
from distill.recipe import Recipe
from instil.base.config import load_recipe
from tests.checks.hostile.mutations import JUNK, damage

BATCH = 50  # drawn in one go; a case is the same whatever range it is asked for in
Strategy = st.SearchStrategy[Any]

words = st.text(max_size=8) | st.sampled_from(("digits", "..", "a/b", "x.yaml", "~", "1e-5", "no"))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates() | st.binary()
junk = st.one_of(
    leaves,
    st.lists(leaves, max_size=2),
    st.dictionaries(words | st.integers(), leaves, max_size=2),
    st.sampled_from(JUNK),
)


def of_schema(node: dict[str, Any], known: dict[str, Any]) -> Strategy:
    """Values of a JSON schema, one in twenty of them something else."""
    if "$ref" in node:
        return _of_reference(node["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in node or "oneOf" in node:
        return st.one_of(*(of_schema(part, known) for part in node.get("anyOf") or node["oneOf"]))
    if "const" in node:
        return st.just(node["const"])
    fits = st.sampled_from(node["enum"]) if "enum" in node else _of_type(node, known)
    return st.integers(0, 19).flatmap(lambda die: fits if die else junk)


@functools.cache
def _of_reference(name: str) -> Strategy:
    known = Recipe.model_json_schema()["$defs"]
    return st.deferred(lambda: of_schema(known[name], known))


def _of_type(node: dict[str, Any], known: dict[str, Any]) -> Strategy:
    match node.get("type"):
        case "object":
            return _of_object(node, known)
        case "array":
            items = of_schema(node.get("items") or node["prefixItems"][0], known)
            return st.lists(items, max_size=3)
        case "integer":
            return st.integers(1, 1000) | st.integers()
        case "number":
            return st.floats(0, 1) | st.floats(0, 100) | st.floats()
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return words


def _of_object(node: dict[str, Any], known: dict[str, Any]) -> Strategy:
    """A few of its fields, at times one that it does not have."""
    fields = {name: of_schema(each, known) for name, each in node.get("properties", {}).items()}
    fields["nane"] = junk
    kind = {name: each for name, each in fields.items() if name == "kind"}
    return st.lists(st.sampled_from(list(fields)), max_size=3).flatmap(
        lambda names: st.fixed_dictionaries(kind | {name: fields[name] for name in names})
    )


@functools.cache
def _recipes() -> Strategy:
    schema = Recipe.model_json_schema()
    base = st.fixed_dictionaries({"name": st.just("x") | words, "instructor": words})
    whole = _of_object(schema, schema["$defs"])
    return st.tuples(base, whole).map(lambda both: both[0] | both[1]) | whole | junk


@functools.cache
def drawn(start: int, batch: int) -> list[Any]:
    """A batch of recipes, as a function of a seed and the number of the batch."""
    found: list[Any] = []

    @seed(f"{start}/{batch}")
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_recipes())
    def draw(recipe: Any) -> None:
        found.append(recipe)

    draw()
    return found


LAUGHS = "a: &a [1, 1]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(20)
)
# What no strategy of values writes: YAML's own ways to be odd.
ODD = (
    "", "null", "- a\n- b\n", "name", "name: [", "name: 'x", "{name: x", "name: x\nname: y\n",
    "name: !!python/object/apply:os.system ['touch hostile']\n", "name: !!binary '*'\n",
    "name: !!python/name:os.system\n", "name: !!set {a, b}\n", "!!omap [a: 1]\n",
    "name: 2001-99-99\n",
    "name: 2001-12-14t21:59:43.10-05:00\n", "seed: 0b\n", "seed: 0x_\n", "seed: 190:20:30\n",
    f"seed: {'9' * 5000}\n", f"seed: {'9' * 4200}\n", "seed: 1e999999\n", "name: !!int abc\n",
    "name: !!float abc\n", "name: !!bool abc\n", "name: !!timestamp abc\n", "<<: 3\n", "<<: [1]\n",
    "<<: {name: x}\n", "? [a]\n: b\n", "? {a: b}\n: c\n", "=: 1\n", "1: 2\n", "null: 1\n", "~: 1\n",
    "2001-01-01: 1\n", "1.5: 2\n", "train: &t {steps: 1}\nlevels: *t\n", "a: &a {a: *a}\n",
    "a: &a [*a]\n", "- &a [*a]\n", LAUGHS, "train: *missing\n", "[" * 5_000, "{a: " * 3_000,
    "- " * 3_000, "a:\n" * 3_000, "\t", "%YAML 9.9\n---\nname: x\n", "--- a\n--- b\n", "\0", "\x85",
    "\ufeffname: x\n", "name: \ud800\n", 'name: "\\ud800"\n', 'name: "\\0"\n', 'name: "\\x1b[2J"\n',
    "name: " + "x" * 500_000 + "\n", "\n".join(f"k{k}: {k}" for k in range(20_000)),
    "k: {" + ", ".join(f"k{k}: 1" for k in range(5_000)) + "}\n", "k: [" + "1, " * 20_000 + "1]\n",
    "instructor: \"\\0\"\n", "divergence: {kind: [sid]}\n", "divergence: {kind: {}}\n",
    "student: {kind: gan, weights: x, arguments: {a: {b: [1, {c: 2001-01-01}]}}}\n",
    "student: gan\n", "blend: [1]\n", "conditioning: {}\n", "levels: {kind: log_normal, kind: x}\n",
)  # fmt: skip
ODD_WORDS = (
    "=", "=1", "a", "a=", "a.b.c=1", "a..b=1", ".a=1", "train.steps", "train.steps=", "train=1",
    "train.steps=[", "train.steps={a", "train=&a [*a]", "train.steps=9" + "9" * 5000, "a b=1",
    "train.steps=0b", "seed=2001-99-99", "train=!!python/name:os.system", "train.steps.more=1",
    "divergence=nonsense", "divergence.kind=[]", "levels.kind=1", "name=\0", "name=a/b",
    "name=\x1b",
    "trackers=[a]", "=".join("ab" * 50), "x." * 5000 + "y=1", "train.=1", "é=1",
    "train.steps=1e400",
    "student.sigmas=[]", "student={}", "fake=[]", "optimizer.betas=[1]", "optimizer.betas=[0,0,0]",
    "preflight=\0", "preflight=" + "x" * 5000, "train.batch=" + "[" * 3000, "evaluation=null",
)  # fmt: skip


def case(start: int, number: int, folder: Path) -> Callable[[], Any]:
    """A recipe file and some overrides, and the reading of them."""
    dice = Random(f"{start}/recipes/{number}")
    batch = drawn(start, number // BATCH)
    value = batch[number % BATCH % len(batch)]
    path = folder / "recipe.yaml"
    way = dice.random()
    overrides: list[str] = []
    if way < 0.45:
        path.write_bytes(_yaml(value))
    elif way < 0.6:
        shipped = dice.choice(sorted(RECIPES.rglob("*.yaml")))
        path.write_bytes(damage(shipped.read_bytes(), dice))
    elif way < 0.7:
        path.write_bytes(damage(_yaml(value), dice))
    elif way < 0.85:
        path.write_bytes(dice.choice(ODD).encode("utf-8", "surrogatepass"))
    else:
        path.write_text("name: x\ninstructor: digits\n")
        overrides = _overrides(value if isinstance(value, dict) else {}, dice)
    if dice.random() < 0.1:
        overrides.append(dice.choice(ODD_WORDS))
    source = str(path) if dice.random() < 0.97 else dice.choice(("", "..", "nope", "x" * 300, "/"))

    def read() -> None:
        recipe = load_recipe(Recipe, source, overrides, RECIPES)
        again = Recipe.model_validate_json(json.dumps(recipe.model_dump(mode="json")))
        assert again == recipe, "a recipe that is not what its own dump says"

    return read


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


def _overrides(value: dict[str, Any], dice: Random) -> list[str]:
    """Some keys of a recipe as they are written on the command line."""
    words = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner and dice.random() < 0.7:
            name, what = dice.choice(list(inner.items()))
            key, inner = f"{key}.{name}", what
        text = yaml.safe_dump(inner, default_flow_style=True, width=10**6).removesuffix("...\n")
        words.append(f"{key}={text.strip()}")
    return dice.sample(words, min(len(words), dice.randint(1, 4)))
