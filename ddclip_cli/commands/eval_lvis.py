"""`ddclip eval-lvis`: zero-shot classification of Objaverse-LVIS, or of any labelled view store of a recipe."""

from __future__ import annotations

from ddclip_cli.commands.classification import classify
from ddclip_cli.commands.evaluating import Options, evaluates
from ddclip_cli.commands.options import Overrides, StoreOption


@evaluates
def command(options: Options, overrides: Overrides = None, store: StoreOption = None) -> None:
    """Zero-shot accuracy of a checkpoint: top-1, 3 and 5 for every number of views.

    The objects, their labels and class features are those of the recipe: Objaverse-LVIS, unless it says otherwise. All
    numbers of views and runs come from one pass over the store. Per-class accuracies, the pairs of classes most often
    confused and the outcome of every object are in the JSON.

    Examples:
    \b
      ddclip eval-lvis --protocol paper --baseline zero-shot --out lvis
      ddclip eval-lvis --recipe sample --data-dir demo --views 1,6,12
    """
    classify("eval", options, overrides, store=store)
