"""The sections and keys of a recipe: typed, validated once, frozen; unknown keys are refused.

Relative paths resolve under the data directory; `sample:NAME` is a file that is shipped with the package.
Defaults are the released Duoduo CLIP settings (arXiv 2406.11579).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _fewest_first(num_views: tuple[int, int]) -> tuple[int, int]:
    if num_views[0] > num_views[1]:
        raise ValueError("must be [fewest, most]")
    return num_views


def _one_place(template: str) -> str:
    if template.count("{}") != 1 or set(template.replace("{}", "")) & set("{}"):
        raise ValueError("must be texts with one {} each, where the class name goes")
    return template


Text = Annotated[str, Field(min_length=1)]
"""A path, or the name of something; `sample:NAME` is a file that is shipped with the package."""
Crop = Literal["none", "center", "random"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
ViewRange = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_fewest_first)]
ViewCounts = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
Templates = Annotated[tuple[Annotated[str, AfterValidator(_one_place)], ...], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RenderSection(Section):
    num_views: Annotated[int, Field(ge=1, le=1000)] = 12
    image_size: Annotated[int, Field(ge=16, le=2048)] = 512
    """Side of a view in pixels."""
    camera: Literal["zero123", "ring", "sphere"] = "zero123"
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the cameras, together with the object id."""
    up: Literal["auto", "y", "z"] = "auto"
    """The axis that points up in the files; `auto` goes by their format."""
    object_ids: Literal["name", "path"] = "name"
    """The files' names without suffix, or their whole paths below the folder: `chairs/7.glb` is `chairs_7.glb`."""


class PackSection(Section):
    num_views: PositiveInt = 12
    image_size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Side of a view in pixels."""
    codec: Literal["raw", "jpeg", "lossless"] = "raw"
    """How views are kept: as pixels, which the reference reads too, or encoded."""


class ModelSection(Section):
    backbone: Text = "ViT-B-32"
    """An open_clip model name, or the path of an open_clip config JSON."""
    pretrained: Text | None = "laion2b_s34b_b79k"
    """The backbone's weights: an open_clip tag, a weights file or a checkpoint folder. None: random weights."""
    cross_view_from: NonNegativeInt = 6
    """First block in which the views of an object attend to each other; the number of blocks means plain averaging."""
    checkpoint: Text | None = "Four_1to6F_bs1600_LT6"
    """What evaluates, embeds and retrieves: an official checkpoint's name, a `.ckpt` file or a checkpoint folder."""


class ExtraDataSection(Section):
    """A second set of objects that joins every step with views of its own count (MVPNet, MVImgNet)."""

    store: Text
    ids: Text | None = None
    objects: Text | None = None
    image_targets: Text
    text_targets: Text
    batch_size: PositiveInt
    """Objects of this set in a global batch, beside `train.batch_size`."""


class DataSection(Section):
    store: Text = "mv_images.h5"
    ids: Text | None = None
    """JSON of the store's rows (`object_id: row`); None: the ids in the store, or the JSON beside it."""
    objects: Text | None = "four_model_ids.txt"
    """Text file of the object ids to train on, one a line; None: every object of the store."""
    image_targets: Text = "ViT-B-32_laion2b_s34b_b79k/image_embeddings.h5"
    text_targets: Text = "ViT-B-32_laion2b_s34b_b79k/text_embeddings.h5"
    extra: ExtraDataSection | None = None


class TrainSection(Section):
    batch_size: PositiveInt = 1600
    """Objects in a global batch, over all processes."""
    num_views: ViewRange = (1, 6)
    """Range, both ends included, from which a step draws the number of views."""
    epochs: PositiveInt = 80
    view_choice: Literal["step", "object"] = "step"
    """Whether the view numbers are drawn once a step, for all its objects (the paper), or for each object."""
    init_from: Text | None = None
    """A checkpoint (official name, `.ckpt` file or folder) whose weights and logit scale training starts from; None:
    the pretrained backbone and `init_logit_scale`."""
    trainable: Literal["attention", "all", "none"] = "attention"
    """What is trained beside the logit scale: attention from `trainable_from` on, the image tower, or nothing."""
    trainable_from: NonNegativeInt | None = None
    """First block whose attention is trained; None: `model.cross_view_from`."""
    learning_rate: NonNegativeFloat = 5e-5
    min_learning_rate: NonNegativeFloat = 1e-7
    """Where the cosine ends, which moves once an epoch."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0 to where it would be without them."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01
    decayed: Literal["all", "matrices"] = "all"
    """What the weight decay shrinks: everything that is trained, or not the biases, norms and logit scale."""
    ema_decay: Decay | None = None
    """Of an exponential moving average of the weights, which is then what is evaluated and saved; None: no average."""
    init_logit_scale: float = 2.658859956911438
    """Natural logarithm: ln(1 / 0.07)."""
    max_logit_scale: float | None = None
    """Natural logarithm of the most that the logit scale may become; None: no limit."""
    image_loss_weight: NonNegativeFloat = 1.0
    text_loss_weight: NonNegativeFloat = 1.0
    crop: Crop = "random"
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "fp16"
    """Mixed precision of training; fp16 needs a GPU, fp64 is double precision, to compare runs."""


class ClassificationSection(Section):
    """Zero-shot classification of a labelled view store: here Objaverse-LVIS."""

    store: Text = "lvis_images.h5"
    ids: Text | None = None
    labels: Text = "lvis.csv"
    """CSV without header: class_index,class_name,object_id."""
    class_features: Text | None = "lvis_class_label_embeddings.npy"
    """(C, E) features of the classes (`.npy`), or the names of all classes, one a line, or None: the names in the
    labels. Of names the model's own text tower makes features, with `templates`."""
    templates: Templates = ("a {}", "a 3D model of a {}")
    views: ViewCounts = (1, 2, 3, 4, 5, 6, 8, 10, 12)
    """Numbers of views to evaluate."""
    runs: PositiveInt = 1
    """Evaluations with other random views (and crops), of which the mean is reported; the paper has three."""
    crop: Crop = "center"
    """`random` is the paper's protocol; `center` and `none` are deterministic."""
    seed: NonNegativeInt = 678


class EvalSection(ClassificationSection):
    """The evaluation of `eval-lvis`, and of training."""

    validation_views: PositiveInt = 6
    """Number of views of the evaluation that training runs after every epoch."""


class MvpnetSection(ClassificationSection):
    """The same of MVPNet's real objects."""

    store: Text = "ViT-B-32_laion2b_s34b_b79k/mvpnet/mvpnet_mv_images.h5"
    labels: Text = "mvpnet_val.csv"
    class_features: Text | None = "mvimgnet/mvimgnet_category.txt"
    templates: Templates = ("a photo of a {}", "a close photo of a {}", "a photo of the {} from above")
    views: ViewCounts = (1, 6, 12)


class ScanObjectNNSection(ClassificationSection):
    """The same of ScanObjectNN's scanned objects, rendered."""

    store: Text = "scanobjectnn_images.h5"
    labels: Text = "scanobjectnn.csv"
    class_features: Text | None = None
    views: ViewCounts = (12,)


class Text2ShapeSection(Section):
    """Retrieval between the captions and the views of the objects of a store."""

    store: Text = "text2shape_images.h5"
    ids: Text | None = None
    captions: Text = "text2shape_captions.json"
    """JSON of captions by object id; an id may carry a suffix after its last `_`."""
    views: ViewCounts = (12,)
    runs: PositiveInt = 1
    crop: Crop = "center"
    seed: NonNegativeInt = 678


class EmbedSection(Section):
    num_views: PositiveInt = 12
    crop: Literal["none", "center"] = "center"


class RetrieveSection(Section):
    index: Text = "objaverse_embeddings/Four_1to6F_bs1600_LT6/shape_emb_objaverse.h5"
    top_k: PositiveInt = 5


class Recipe(Section):
    seed: NonNegativeInt = 123
    render: RenderSection = RenderSection()
    pack: PackSection = PackSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    mvpnet: MvpnetSection = MvpnetSection()
    scanobjectnn: ScanObjectNNSection = ScanObjectNNSection()
    text2shape: Text2ShapeSection = Text2ShapeSection()
    embed: EmbedSection = EmbedSection()
    retrieve: RetrieveSection = RetrieveSection()
