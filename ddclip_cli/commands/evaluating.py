"""What the commands that evaluate share: their options, what they work on, and what becomes of their report."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ddclip_cli.commands.options import (
    DATA_DIR,
    BaselineOption,
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    ForceOption,
    Format,
    FormatOption,
    IdsOption,
    JsonOption,
    LimitOption,
    OutOption,
    Precision,
    PrecisionOption,
    ProcessesOption,
    Protocol,
    ProtocolOption,
    RecipeOption,
    RunsOption,
    SeedOption,
    SetOption,
    ViewsOption,
)

if TYPE_CHECKING:
    from ddclip_cli.evaluation.plot import Curve
    from ddclip_cli.evaluation.report import Table
    from ddclip_cli.model.multiview import MultiViewCLIP

PAPER_RUNS = 3


@dataclass(frozen=True)
class Options:
    """The options of every evaluation."""

    recipe: RecipeOption = "four"
    set_: SetOption = None
    checkpoint: CheckpointOption = None
    views: ViewsOption = None
    runs: RunsOption = None
    protocol: ProtocolOption = None
    seed: SeedOption = None
    baseline: BaselineOption = None
    limit: LimitOption = None
    ids: IdsOption = None
    out: OutOption = None
    format_: FormatOption = Format.text
    as_json: JsonOption = False
    force: ForceOption = False
    processes: ProcessesOption = 1
    data_dir: DataDirOption = DATA_DIR
    device: DeviceOption = "auto"
    precision: PrecisionOption = Precision.auto

    def shorthands(self, section: str) -> list[str]:
        """Overrides of a section of the recipe that some of the options stand for."""
        crop = {None: None, Protocol.deterministic: "center", Protocol.paper: "random"}[self.protocol]
        runs = PAPER_RUNS if self.runs is None and self.protocol is Protocol.paper else self.runs
        given = {"views": self.views, "runs": runs, "seed": self.seed, "crop": crop}
        return [f"{section}.{key}={value}" for key, value in given.items() if value is not None]


def evaluates(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is `options: Options`, all those options beside its own parameters."""
    hints = get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Options)
    ]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options = Options(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(options, **given)

    with_options.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return with_options


class Evaluation:
    """An evaluation as a section of the recipe describes it, with all its files there.

    Attributes:
        keys: the section of the recipe.
        paths: the files that it names, by key, None for those that it does without; those of the command line instead
            where there are any.
        trained_on: file name of the list of objects that the recipe trains on, None if that is not all of it.
    """

    def __init__(
        self,
        section: str,
        options: Options,
        overrides: Sequence[str] | None,
        *,
        files: Sequence[str],
        own: dict[str, Path | None],
    ) -> None:
        """`files`: keys of the section that name files; `own`: files of the command line for some of them."""
        from ddclip_cli.commands.needs import require, sample_hint
        from ddclip_cli.commands.sources import checkpoint_source
        from ddclip_cli.evaluation.report import REPORT
        from ddclip_cli.files import refuse_existing
        from ddclip_cli.recipe import data_path, load_recipe

        self.section, self.options, self.own = section, options, {**own, "ids": options.ids}
        self.settings = load_recipe(
            options.recipe, [*(options.set_ or []), *(overrides or []), *options.shorthands(section)]
        )
        self.keys = getattr(self.settings, section)
        data = self.settings.data
        self.trained_on = data.objects if data.extra is None else None
        if options.out is not None:
            refuse_existing(options.out / REPORT, force=options.force)
        self.paths: dict[str, Any] = {}
        for key in files:
            named = getattr(self.keys, key)
            if key == "ids" and own.get("store") is not None:
                named = None  # a store of one's own brings its own ids
            self.paths[key] = self.own.get(key) or (named and data_path(named, options.data_dir))
        hint = sample_hint(self.settings, *self.paths.values())
        source = checkpoint_source(self.settings, options.checkpoint, options.data_dir)
        require(*self.paths.values(), source, data_dir=options.data_dir, hint=hint)

    def model(self) -> MultiViewCLIP:
        from ddclip_cli.commands.sources import load_recipe_model

        options = self.options
        return load_recipe_model(
            self.settings, options.checkpoint, options.data_dir, options.device, options.precision.value
        )

    def arguments(self, model: MultiViewCLIP) -> dict[str, Any]:
        """What the evaluations in `ddclip_cli.evaluation` take by the same names, the baseline of `model` among it."""
        from ddclip_cli.commands.sources import load_recipe_backbone
        from ddclip_cli.evaluation.report import UNFINISHED

        options, keys, baseline = self.options, self.keys, None
        if options.baseline:
            baseline = load_recipe_backbone(self.settings, options.data_dir, str(model.device), model.precision)
        return {
            "views": keys.views,
            "runs": keys.runs,
            "seed": keys.seed,
            "crop": keys.crop,
            "baseline": baseline,
            "limit": options.limit,
            "processes": options.processes,
            "unfinished": None if options.out is None else options.out / UNFINISHED,
            "force": options.force,
        }

    def finish(
        self,
        report: dict[str, Any],
        model: MultiViewCLIP,
        title: str,
        tabulate: Callable[[dict[str, Any]], Table],
        plot: Callable[[dict[str, Any]], list[Curve]],
    ) -> None:
        """Add to the report what it was made with, write it to `--out`, and print it."""
        from ddclip_cli.commands.sources import recorded
        from ddclip_cli.evaluation.report import write_report

        options = self.options
        given = {f"{self.section}.{key}": None if path is None else str(path) for key, path in self.own.items()}
        document = recorded(self.settings, given | {"model.checkpoint": options.checkpoint})
        report |= {
            "checkpoint": document["model"]["checkpoint"],
            "fingerprint": model.fingerprint,
            "precision": model.precision,
            "limit": options.limit,
            "recipe": document,
        }
        table = tabulate(report)
        if options.out is not None:
            write_report(options.out, report, table, title, plot(report))
        print_result(report, table, as_json=options.as_json, form=options.format_)


def print_result(report: dict[str, Any], table: Table, *, as_json: bool, form: Format) -> None:
    """The report as JSON, or its table for a person or a paper."""
    from ddclip_cli import console
    from ddclip_cli.evaluation.tables import latex, markdown

    if as_json:
        console.print_json(report)
    elif form is Format.text:
        console.print_table(*table)
    else:
        print((markdown if form is Format.markdown else latex)(*table), end="")
