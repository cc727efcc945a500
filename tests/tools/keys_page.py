"""The page of all keys: `python -m tests.tools.keys_page` writes docs/keys.md."""

from pathlib import Path

from distill.recipe import Recipe
from instil.base.config.keys import keys
from instructors.training.train import TrainRecipe as InstructorRecipe
from students.gan.train import TrainRecipe as StudentRecipe

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"
HEAD = """# Keys of a recipe

```bash
python -m distill --keys train        # all keys below `train`, as on this page
python -m distill --show digits       # the resolved recipe, and where each value is from
```

A recipe is a YAML file. It says only what differs from the recipe it `extends`, by name or by a
path from its own folder, or from the defaults below:

```yaml
extends: digits
name: mine
train: {steps: 500}
divergence: {kind: my_package.module:Reverse, power: 1.0}
```

* `key.path=value` on the command line goes before all files.
* A class of your own may stand wherever a key has a `kind`: `package.module:Class`, installed or
  below the folder the command is run in. It derives from the base class of the kinds listed here
  (such as `distill.divergences.Divergence`), and its fields are the keys beside `kind`.
* `~` and `$HOME` in paths are expanded. A relative path is meant from the folder the command is run
  in, but for `extends`.
* `010` and `1:30` are words, not numbers; merge keys (`<<`) work.
* `--debug`, or `INSTIL_DEBUG=1`, shows the stack below an error.
"""
MODELS = {
    "python -m distill": Recipe,
    "python -m instructors train": InstructorRecipe,
    "python -m students train": StudentRecipe,
}


def page() -> str:
    """The text of docs/keys.md."""
    return HEAD + "".join(f"\n## {name}\n\n{keys(model)}\n" for name, model in MODELS.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
