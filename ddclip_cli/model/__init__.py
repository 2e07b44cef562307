"""The multi-view encoder: what it computes, how pictures get in, and the files it lives in."""
