"""The recipe: one YAML file that defines a run."""

from profuser.recipe.layers import find_arm
from profuser.recipe.loading import apply_overrides, load_recipe
from profuser.recipe.models import Recipe

__all__ = ["Recipe", "apply_overrides", "find_arm", "load_recipe"]
