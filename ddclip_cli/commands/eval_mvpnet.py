"""`ddclip eval-mvpnet`: zero-shot classification of MVPNet's photos of real objects."""

from __future__ import annotations

from ddclip_cli.commands.classification import classify
from ddclip_cli.commands.evaluating import Options, evaluates
from ddclip_cli.commands.options import Overrides, StoreOption


@evaluates
def command(options: Options, overrides: Overrides = None, store: StoreOption = None) -> None:
    """Zero-shot accuracy on MVPNet's photos of real objects.

    Store, labels and class names are those of the recipe's section mvpnet: `ddclip download mvpnet-lists
    mvimgnet-lists` brings the latter two, `ddclip pack-h5` makes the store of your copy of MVPNet.

    Examples:
    \b
      ddclip eval-mvpnet --protocol paper --out mvpnet
      ddclip eval-mvpnet --recipe four-mvpnet --store mvpnet.h5 --views 1,6,12
    """
    classify("mvpnet", options, overrides, store=store)
