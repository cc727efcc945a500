"""Typed recipes: pydantic models, YAML files and `key.path=value`, every fault reported at once.

This package and every recipe load without torch, so that a recipe is checked before anything slow.
"""

from instil.base.config.choice import OneOf as OneOf
from instil.base.config.model import Choice as Choice
from instil.base.config.model import Config as Config
from instil.base.config.model import merge as merge
from instil.base.config.model import validate as validate
from instil.base.config.recipes import load_recipe as load_recipe
from instil.base.config.recipes import recipe_names as recipe_names
from instil.base.config.text import read_overrides as read_overrides
from instil.base.config.text import read_yaml as read_yaml
