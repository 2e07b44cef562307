"""Names of the published files of Duoduo CLIP on the Hugging Face Hub. Constants only."""

from __future__ import annotations

MODEL_REPO = "3dlg-hcvc/DuoduoCLIP"
DATA_REPO = "3dlg-hcvc/DuoduoCLIP-data"

OFFICIAL_CHECKPOINTS = {
    "Four_1to6F_bs1600_LT6": "Four_1to6F_bs1600_LT6.ckpt",
    "Four_MVPNet_1to6F_bs1600_LT6": "Four_MVPNet_1to6F_bs1600_LT6.ckpt",
    "Four_MVImgNet_1to6F_bs1600_LT6": "Four_MVImgNet_1to6F_bs1600_LT6.ckpt",
}
"""Name -> file in MODEL_REPO. All three: a ViT-B-32 with cross-view attention from block 6."""

CHECKPOINT_SIZE = "about 600 MB"
