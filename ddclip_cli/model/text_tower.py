"""The text tower in numpy: the vectors of the torch model to 1e-5, without the seconds that importing torch takes.

A text has a dozen tokens, so the arithmetic is trivial; and attention looks only backwards, so that nothing after the
end token has to be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.console import warn
from ddclip_cli.errors import UserError
from ddclip_cli.model.mapped_weights import MappedCheckpoint, NotMappedError, open_mapped
from ddclip_cli.model.tokenizer import Tokenizer

TEXTS_AT_ONCE = 256
EPSILON = 1e-5
PLAIN_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
"""Keys of open_clip's configs that are understood here; a tower with others is torch's to build."""


class TextTower:
    """Texts to vectors of one checkpoint.

    Attributes:
        embed_dim: width of the vectors.
        fingerprint: the name of the model's weights, as `MultiViewCLIP.fingerprint`.
    """

    def __init__(self, checkpoint: MappedCheckpoint) -> None:
        """Raises NotMappedError if the tower is not CLIP's plain one, or its weights do not fit it."""
        config = checkpoint.config
        text = config.get("text_cfg")
        if not isinstance(text, dict) or set(config) - PLAIN_MODEL or set(text) - PLAIN_TEXT:
            raise NotMappedError("its text tower is of another kind than CLIP's")
        width, self._layers = int(text.get("width", 512)), int(text.get("layers", 12))
        self._heads = int(text.get("heads", 8))
        self._context = int(text.get("context_length", 77))
        self._gelu = _quick_gelu if config.get("quick_gelu") else _gelu
        self.embed_dim = int(config["embed_dim"])
        self.fingerprint = checkpoint.fingerprint()
        self._checkpoint = checkpoint
        self._weights: dict[str, np.ndarray] = {}
        self._tokenizer: Tokenizer | None = None
        inner = int(width * text.get("mlp_ratio", 4.0))
        self._shapes = _shapes(width, inner, self._layers, self._context, self.embed_dim)
        for name, shape in self._shapes.items():
            if name not in checkpoint.tensors or checkpoint.tensors[name].shape != shape:
                raise NotMappedError(f"{name} is missing or has another shape than {shape}")

    @classmethod
    def load(cls, path: Path, backbone: str | None = None) -> TextTower | None:
        """The tower in a checkpoint folder or `.ckpt` file; None where it takes torch to read it or to say why not."""
        try:
            return cls(open_mapped(path, backbone))
        except (NotMappedError, UserError):
            return None

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, E) float32 of unit length. A text longer than the context is cut, with a warning."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._context)
        rows, cut = self._tokenizer(texts)
        if cut:
            what = f"{cut[0]!r} is" if len(texts) == 1 else f"{len(cut)} of {len(texts)} texts are"
            warn(f"{what} longer than the {self._context} tokens of the backbone's text tower; the rest was cut")
        ends = [row.index(self._tokenizer.end) + 1 for row in rows]  # the first: a text may name the end token itself
        rows = [row[:end] for row, end in zip(rows, ends, strict=True)]
        parts = [self._forward(rows[start : start + TEXTS_AT_ONCE]) for start in range(0, len(rows), TEXTS_AT_ONCE)]
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise UserError("the checkpoint is of no use: its text tower gives numbers that are not finite")
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def _forward(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Token ids of B texts -> (B, E). The tokens of all texts lie end to end: (T, D)."""
        lengths = np.array([len(row) for row in rows])
        ends = np.cumsum(lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        x = self._checkpoint.token_embeddings(np.concatenate([np.asarray(row) for row in rows]))
        x = x + self._get("positional_embedding")[positions]
        spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        for layer in range(self._layers):
            block = f"transformer.resblocks.{layer}."
            x = x + self._attend(block + "attn.", self._norm(block + "ln_1.", x), spans)
            hidden = self._gelu(self._linear(block + "mlp.c_fc.", self._norm(block + "ln_2.", x)))
            x = x + self._linear(block + "mlp.c_proj.", hidden)
        return self._norm("ln_final.", x[ends - 1]) @ self._get("text_projection")

    def _attend(self, prefix: str, x: np.ndarray, spans: Sequence[slice]) -> np.ndarray:
        """(T, D) -> (T, D): every token attends to those of its own text that are not after it."""
        qkv = self._linear(prefix + "in_proj_", x)
        # (T, 3 * D) -> (3, heads, T, D / heads)
        query, key, value = qkv.reshape(len(x), 3, self._heads, -1).transpose(1, 2, 0, 3)
        query = query / np.float32(np.sqrt(query.shape[-1]))
        attended = np.empty_like(query)
        for span in spans:
            scores = query[:, span] @ key[:, span].transpose(0, 2, 1)  # (heads, L, L)
            scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            attended[:, span] = weights / weights.sum(axis=-1, keepdims=True) @ value[:, span]
        joined = attended.transpose(1, 0, 2).reshape(len(x), -1)  # (heads, T, D / heads) -> (T, D)
        return self._linear(prefix + "out_proj.", joined)

    def _linear(self, prefix: str, x: np.ndarray) -> np.ndarray:
        # As (W x^T)^T: with so few rows a third faster than x W^T.
        return (self._get(prefix + "weight") @ x.T).T + self._get(prefix + "bias")

    def _norm(self, prefix: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
        return centred / scale * self._get(prefix + "weight") + self._get(prefix + "bias")

    def _get(self, name: str) -> np.ndarray:
        """A weight in float32: as it lies in the file, or converted once."""
        if name not in self._weights:
            array: Any = self._checkpoint.tensors[name]
            aligned = array.flags.aligned and array.dtype == np.float32
            self._weights[name] = array if aligned else array.astype(np.float32)
        return self._weights[name]


def _shapes(width: int, inner: int, layers: int, context: int, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the tower but the token embedding."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
        **{f"{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")},
    }
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (context, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, embed_dim),
    }
    return shapes | {
        f"transformer.resblocks.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()
    }


def _quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(np.float32(-1.702) * x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * x * (1 + _erf(x * np.float32(np.sqrt(0.5))))


# Numerator in x (odd) and denominator in x (even) of a rational approximation of erf on [-4, 4], as in Eigen; beyond,
# it is 1 to float32's precision.
ERF_OVER = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
            -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
ERF_UNDER = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
             -1.42647390514189e-02)  # fmt: skip


def _erf(x: np.ndarray) -> np.ndarray:
    """The error function of float32 to 3e-7; numpy has none."""
    x = np.clip(x, np.float32(-4), np.float32(4))
    square = x * x
    over, under = np.zeros_like(x), np.zeros_like(x)
    for coefficient in ERF_OVER:
        over = over * square + np.float32(coefficient)
    for coefficient in ERF_UNDER:
        under = under * square + np.float32(coefficient)
    return x * over / under
