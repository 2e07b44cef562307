"""What one sees through, what glows, and textures at every size, against plain sums over rays."""

from __future__ import annotations

import numpy as np
import pytest
from test_render import QUAD_FACES, QUAD_UV, filmic, linear, shaded

from ddclip_cli.render.camera import FOCAL, look_at_origin
from ddclip_cli.render.renderer import render_scene
from ddclip_cli.render.scene import Alpha, Material, Scene, Texture, Wrap
from ddclip_cli.render.shade import AMBIENT, BOUNCE, TOP

EYE = np.array([0.0, -2.0, 0.0])
FRONT = look_at_origin(EYE[None])
GREEN, RED = (0.1, 0.8, 0.2), (0.9, 0.1, 0.1)


def quads(*layers: tuple[float, Material], side: float = 0.5) -> Scene:
    """Upright squares at depths y, the nearest first, each of a material."""
    square = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]) * side
    count = len(layers)
    return Scene(
        vertices=np.concatenate([square + np.array([0, depth, 0]) for depth, _ in layers]).astype(np.float32),
        faces=np.concatenate([np.array(QUAD_FACES) + 4 * number for number in range(count)]),
        material=np.repeat(np.arange(count), 2),
        materials=[material for _, material in layers],
        uv=np.tile(QUAD_UV, (count, 1)).astype(np.float32),
        emissive_uv=np.tile(QUAD_UV, (count, 1)).astype(np.float32),
    )


def view_of(scene: Scene, size: int = 33) -> np.ndarray:
    """(S, S, 4) in [0, 1] from the front."""
    return render_scene(scene, FRONT, image_size=size)[0] / 255


def paint(colour, alpha: float = 1.0, **more) -> Material:
    return Material((*colour, alpha), alpha=Alpha.BLEND if alpha < 1 else Alpha.OPAQUE, **more)


def light_at(colour, depth: float, *, key: bool) -> np.ndarray:
    """Linear light of the middle of a square at a depth, with the lamp or in shadow."""
    if not key:
        return np.array(colour) * (TOP * (BOUNCE + (1 - BOUNCE) * 0.5) + AMBIENT)
    display = shaded(np.array([colour]), np.array([[0.0, depth, 0.0]]), np.array([0, -1.0, 0]))[0]
    stops = 0.6082 - np.log((1.0465 / (display + 0.00875)) ** (1 / 0.8223) - 1) / 0.5587
    return 0.18 * 2**stops


def test_layers_of_glass_cover_what_lies_behind_by_their_alpha():
    view = view_of(quads((-0.3, paint(GREEN, 0.25)), (0.0, paint(RED, 0.5)), (0.3, paint((0.5, 0.5, 0.5)))))
    behind = light_at((0.5, 0.5, 0.5), 0.3, key=True)
    total = 0.25 * light_at(GREEN, -0.3, key=True) + 0.75 * (0.5 * light_at(RED, 0, key=True) + 0.5 * behind)
    assert view[16, 16, 3] == 1
    assert np.allclose(view[16, 16, :3], filmic(total), atol=1.5 / 255)


def test_glass_before_nothing_is_partly_there():
    view = view_of(quads((0.0, paint(GREEN, 0.25)), (0.2, paint(RED, 0.5))))
    assert view[16, 16, 3] == pytest.approx(1 - 0.75 * 0.5, abs=1 / 255)
    total = (0.25 * light_at(GREEN, 0, key=True) + 0.375 * light_at(RED, 0.2, key=True)) / 0.625
    assert np.allclose(view[16, 16, :3], filmic(total), atol=1.5 / 255)


def test_the_order_in_the_file_does_not_matter_to_glass():
    layers = [(-0.3, paint(GREEN, 0.25)), (0.0, paint(RED, 0.5)), (0.1, paint((0, 0, 1), 0.7)), (0.3, paint(GREEN))]
    views = [render_scene(quads(*some), FRONT, image_size=20) for some in (layers, layers[::-1])]
    assert np.abs(views[0].astype(int) - views[1]).max() <= 1


def test_glass_behind_a_wall_is_not_seen():
    wall = view_of(quads((0.0, paint(RED))))
    assert np.array_equal(view_of(quads((0.0, paint(RED)), (0.2, paint(GREEN, 0.5)))), wall)


def leaf() -> np.ndarray:
    """(8, 8, 4) uint8: left half there, right half not, in one colour."""
    picture = np.full((8, 8, 4), 180, np.uint8)
    picture[:, :4, 3], picture[:, 4:, 3] = 255, 0
    return picture


@pytest.mark.parametrize("kind", [Alpha.MASK, Alpha.BLEND])
def test_masked_parts_are_not_there_and_throw_no_shadow(kind):
    cut = Material((1, 1, 1, 1), Texture(leaf(), nearest=True), alpha=kind)
    view = view_of(quads((0.0, cut)))
    columns = np.nonzero(view[16, :, 3] == 1)[0]
    assert columns.max() in (15, 16)
    assert columns.min() <= 8
    assert (view[:, 18:, 3] == 0).all()
    # Before a wall, the lamp reaches the wall through the hole.
    both = view_of(quads((-0.02, cut), (0.4, paint((0.5, 0.5, 0.5)))))
    alone = view_of(quads((0.4, paint((0.5, 0.5, 0.5)))))
    assert np.allclose(both[16, 21], alone[16, 21], atol=1 / 255)


def test_a_cutoff_decides_what_is_there():
    half = Texture(np.full((2, 2, 4), 128, np.uint8))
    for cutoff, there in ((0.4, 1.0), (0.6, 0.0)):
        material = Material((1, 1, 1, 1), half, alpha=Alpha.MASK, cutoff=cutoff)
        assert view_of(quads((0.0, material)))[16, 16, 3] == there


def test_an_opaque_material_ignores_the_alpha_of_its_texture():
    material = Material((1, 1, 1, 1), Texture(np.full((2, 2, 4), 100, np.uint8)))
    assert view_of(quads((0.0, material)))[16, 16, 3] == 1


def test_what_glows_adds_to_the_light_and_a_picture_multiplies_it():
    plain = light_at(GREEN, 0.0, key=True)
    picture = Texture(np.full((2, 2, 3), 188, np.uint8))
    for texture, share in ((None, 1.0), (picture, linear(188 / 255))):
        material = paint(GREEN, emissive=(0.3, 0.0, 0.6), emissive_texture=texture)
        expected = filmic(plain + share * np.array([0.3, 0, 0.6]))
        assert np.allclose(view_of(quads((0.0, material)))[16, 16, :3], expected, atol=1.5 / 255)


def test_an_unlit_material_shows_its_own_colour():
    view = view_of(quads((0.0, paint(GREEN, unlit=True))))
    assert np.allclose(view[16, 16, :3], filmic(np.array(GREEN)), atol=1 / 255)


# ---- textures


def wrapped(position: int, length: int, wrap: Wrap) -> int:
    if wrap == Wrap.REPEAT:
        return position % length
    if wrap == Wrap.CLAMP:
        return min(max(position, 0), length - 1)
    there = position % (2 * length)
    return there if there < length else 2 * length - 1 - there


def sampled(texture: Texture, u: float, v: float) -> np.ndarray:
    """Linear RGB at coordinates, one texel after the other."""
    rows, columns = texture.picture.shape[:2]
    x, y = u * columns, (1 - v) * rows

    def texel(column: int, row: int) -> np.ndarray:
        return linear(
            texture.picture[wrapped(row, rows, texture.wrap[1]), wrapped(column, columns, texture.wrap[0])] / 255
        )

    if texture.nearest:
        return texel(int(np.floor(x)), int(np.floor(y)))
    x0, y0 = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    fx, fy = x - 0.5 - x0, y - 0.5 - y0
    return (texel(x0, y0) * (1 - fx) + texel(x0 + 1, y0) * fx) * (1 - fy) + (
        texel(x0, y0 + 1) * (1 - fx) + texel(x0 + 1, y0 + 1) * fx
    ) * fy


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("wrap", [(Wrap.REPEAT, Wrap.REPEAT), (Wrap.CLAMP, Wrap.MIRROR), (Wrap.MIRROR, Wrap.REPEAT)])
def test_textures_are_sampled_as_one_by_one(wrap, nearest):
    """Magnified, so that the first level alone counts; from -1.5 to 2.5 across and up."""
    picture = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    texture, size = Texture(picture, wrap, nearest), 61
    scene = quads((0.0, Material((1, 1, 1, 1), texture, unlit=True)))
    scene.uv[:] = QUAD_UV * 4 - 1.5
    view = view_of(scene, size)
    half = FOCAL * size / 2 * 0.5  # of the square, in pixels
    checked = 0
    for row in range(0, size, 3):
        for column in range(0, size, 3):
            total, inside = np.zeros(3), True
            for dx in (0.25, 0.75):
                for dy in (0.25, 0.75):
                    u, v = (column + dx - size / 2) / half, (size / 2 - row - dy) / half
                    inside &= max(abs(u), abs(v)) < 0.97
                    at = (u / 2 + 0.5) * 4 - 1.5, (v / 2 + 0.5) * 4 - 1.5
                    edges = (at[0] * 5 % 1, (1 - at[1]) * 3 % 1)
                    inside &= not nearest or all(0.02 < edge < 0.98 for edge in edges)
                    total += filmic(sampled(texture, *at)) / 4
            if inside:
                checked += 1
                assert np.allclose(view[row, column, :3], total, atol=1.6 / 255)
    assert checked > 40


def checkerboard(squares: int) -> Material:
    row, column = np.mgrid[:1024, :1024] * squares // 1024
    board = np.repeat((255 * ((row + column) % 2)).astype(np.uint8)[..., None], 3, axis=2)
    return Material((1, 1, 1, 1), Texture(board), unlit=True)


def test_a_pattern_far_finer_than_pixels_becomes_its_mean_and_a_coarse_one_stays():
    fine, coarse = (view_of(quads((0.0, checkerboard(squares))), 96)[28:68, 28:68, :3] for squares in (512, 8))
    assert np.abs(fine - filmic(np.array(0.5))).max() < 3 / 255
    assert coarse.mean() == pytest.approx((filmic(np.array(1.0)) + filmic(np.array(1e-6))) / 2, abs=0.05)
    assert coarse.std() > 0.35


def test_too_many_texels_are_halved_until_they_fit(monkeypatch):
    board = np.repeat((np.arange(64 * 64) % 2 * 255).astype(np.uint8).reshape(64, 64, 1), 3, axis=2)
    monkeypatch.setattr("ddclip_cli.render.textures.MAX_TEXELS", 1024)
    view = view_of(quads((0.0, Material((1, 1, 1, 1), Texture(board, nearest=True), unlit=True))))
    assert np.abs(view[12:20, 12:20, :3] - filmic(np.array(0.5))).max() < 2 / 255
