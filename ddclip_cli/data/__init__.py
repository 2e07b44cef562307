"""Objects on disk: view stores, ids, captions, labels and training targets."""
