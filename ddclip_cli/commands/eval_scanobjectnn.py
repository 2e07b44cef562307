"""`ddclip eval-scanobjectnn`: zero-shot classification of ScanObjectNN's scanned objects."""

from __future__ import annotations

from ddclip_cli.commands.classification import classify
from ddclip_cli.commands.evaluating import Options, evaluates
from ddclip_cli.commands.options import Overrides, StoreOption


@evaluates
def command(options: Options, overrides: Overrides = None, store: StoreOption = None) -> None:
    """Zero-shot accuracy on the scanned objects of ScanObjectNN, rendered and packed.

    Store and labels are those of the recipe's section scanobjectnn: a store of `ddclip render` and `ddclip pack-h5`,
    and a CSV of class_index,class_name,object_id.

    Examples:
    \b
      ddclip eval-scanobjectnn --protocol paper --out scanobjectnn
      ddclip eval-scanobjectnn --store scans.h5 scanobjectnn.labels=scans.csv
    """
    classify("scanobjectnn", options, overrides, store=store)
