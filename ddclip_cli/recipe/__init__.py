"""Recipes: everything that changes a result, in one validated, frozen document."""

from ddclip_cli.recipe.errors import RecipeError
from ddclip_cli.recipe.library import list_recipes
from ddclip_cli.recipe.loader import load_recipe, resolve
from ddclip_cli.recipe.paths import data_path
from ddclip_cli.recipe.schema import Recipe

__all__ = ["Recipe", "RecipeError", "data_path", "list_recipes", "load_recipe", "resolve"]
