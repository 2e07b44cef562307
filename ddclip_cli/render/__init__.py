"""Meshes to views on any machine: a triangle rasteriser in plain torch, no display and no system package."""

from ddclip_cli.render.renderer import render_mesh, render_scene

__all__ = ["render_mesh", "render_scene"]
