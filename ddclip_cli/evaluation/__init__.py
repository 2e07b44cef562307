"""How good a model is: metrics, class features and zero-shot classification over a view store."""
