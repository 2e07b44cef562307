"""`ddclip recipe`: the recipes that there are, what one of them resolves to, and whether a file is one."""

from __future__ import annotations

from typing import Annotated

import typer

from ddclip_cli.commands.options import JsonOption, Overrides, SetOption

command = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")
RecipeArgument = Annotated[
    str, typer.Argument(metavar="NAME_OR_PATH", help="A recipe of ours by name, or a YAML file.")
]


@command.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the recipes that come with ddclip.

    Examples:
    \b
      ddclip recipe list
      ddclip recipe list --json
    """
    from ddclip_cli.console import print_json, print_table
    from ddclip_cli.recipe import list_recipes

    recipes = list_recipes()
    if as_json:
        print_json([{"name": name, "about": about} for name, about in recipes])
    else:
        print_table(["recipe", "what it is"], recipes)


@command.command("show")
def show(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the whole of a recipe, parents and overrides included, as YAML that is itself a recipe.

    A comment behind each value says where it comes from: a file and line, --set, or default.

    Examples:
    \b
      ddclip recipe show four
      ddclip recipe show sample train.epochs=1 eval.views=1,12
    """
    from ddclip_cli.console import print_json
    from ddclip_cli.recipe import resolve
    from ddclip_cli.recipe.show import as_yaml

    resolved = resolve(recipe, [*(set_ or []), *(overrides or [])])
    if as_json:
        print_json(resolved.recipe.model_dump(mode="json"))
    else:
        print(as_yaml(resolved), end="")


@command.command("check")
def check(recipe: RecipeArgument) -> None:
    """Check a recipe: print OK, or every mistake in it (exit code 2).

    Whether the files exist that it names is not looked at.

    Examples:
    \b
      ddclip recipe check four
      ddclip recipe show four > mine.yaml && ddclip recipe check mine.yaml
    """
    from ddclip_cli.recipe import load_recipe

    load_recipe(recipe)
    print(f"{recipe}: OK")
