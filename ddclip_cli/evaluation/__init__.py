"""How good a model is: zero-shot classification and retrieval from one pass over a view store, and their reports."""
