"""The sample library: parametric 3D objects with captions, made from a seed."""
