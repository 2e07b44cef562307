"""From a view store to answers: shape embeddings, exact retrieval, contact sheets."""
