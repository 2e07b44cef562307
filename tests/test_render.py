"""The renderer against oracles: brute force over pixels, closed forms, and a plain shader in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddclip_cli.render.camera import FOCAL, look_at_origin
from ddclip_cli.render.raster import BATCH, EMPTY, inverse_depth_of, project, rasterize, triangle_of
from ddclip_cli.render.renderer import poses_of, render_scene
from ddclip_cli.render.scene import Material, Scene, Texture
from ddclip_cli.render.shade import AMBIENT, BOUNCE, KEY, LIGHT, TOP

NEAR_EDGE = 1e-4  # pixels


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene_of(vertices, faces, *, colour=(0.5, 0.5, 0.5), uv=None, texture=None) -> Scene:
    """A scene of one material with flat shading; vertices stay where they are."""
    faces = np.asarray(faces, dtype=np.int64)
    return Scene(
        vertices=np.asarray(vertices, dtype=np.float32),
        faces=faces,
        material=np.zeros(len(faces), dtype=np.int64),
        materials=[Material((*colour, 1.0), None if texture is None else Texture(texture))],
        uv=None if uv is None else np.asarray(uv, dtype=np.float32),
    )


def rasterized(triangles: np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
    """Keys (S, S) of triangles (T, 3 corners, xyw), each with corners of its own."""
    points = torch.as_tensor(triangles).reshape(-1, 3).T
    return rasterize(points[None], torch.arange(points.shape[1]).view(-1, 3).T, size)[0]


def covered_by_brute_force(triangle: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(S, S) which pixel centres lie in a triangle (3, xy), float64, and how far each is from an edge, in pixels.

    A ray to the right crosses an odd number of edges; an edge has its upper end and not its lower one, and a crossing
    at the centre itself does not count: so the left border is inside and the right one is not.
    """
    centres = np.arange(size) + 0.5
    x, y = np.meshgrid(centres, centres)
    crossings = np.zeros((size, size), int)
    distance = np.full((size, size), np.inf)
    for (ax, ay), (bx, by) in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
        spans = (np.minimum(ay, by) <= y) & (y < np.maximum(ay, by))
        at = ax + (y - ay) * (bx - ax) / (by - ay if by != ay else 1.0)
        crossings += spans & (at > x)
        squared = max((bx - ax) ** 2 + (by - ay) ** 2, 1e-12)
        along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / squared, 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
    return crossings % 2 == 1, distance


def random_triangles(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(T, 3, xyw) float32 of all kinds: large, small, slivers, partly or wholly off screen, on pixel centres."""
    middle = rng.uniform(-0.2 * size, 1.2 * size, (count, 1, 2))
    extent = size * rng.uniform(0.1, 1, (count, 1, 1)) ** 2
    corners = middle + extent * rng.uniform(-1, 1, (count, 3, 2))
    corners[::4] = np.floor(corners[::4]) + 0.5
    corners[::7, 1] = corners[::7, 0] + 0.01 * (corners[::7, 1] - corners[::7, 0])
    return np.concatenate([corners, rng.uniform(0.4, 0.7, (count, 3, 1))], axis=2).astype(np.float32)


def test_a_triangle_covers_the_pixels_whose_centres_it_holds():
    size, differing, total = 48, 0, 0
    for triangle in random_triangles(np.random.default_rng(0), 150, size):
        drawn = (rasterized(triangle, size) != EMPTY).numpy()
        expected, distance = covered_by_brute_force(triangle[:, :2].astype(np.float64), size)
        assert not ((drawn != expected) & (distance > NEAR_EDGE)).any(), triangle
        differing += int((drawn != expected).sum())
        total += int(expected.sum())
    assert total > 5_000
    assert differing < 5


def test_on_pixel_centres_the_rule_decides_to_the_pixel():
    """All crossings of these edges are exact in float32, so nothing may differ."""
    corners = np.array([[4.5, 4.5, 0.5], [12.5, 4.5, 0.5], [4.5, 12.5, 0.5], [12.5, 12.5, 0.5]], np.float32)
    keys = rasterized(corners[[[0, 1, 2], [1, 3, 2]]], 16)
    inside = np.zeros((16, 16), bool)
    inside[4:12, 4:12] = True
    assert np.array_equal((keys != EMPTY).numpy(), inside)


def test_neighbours_share_no_pixel_and_leave_none_out():
    size, cells = 40, 9
    rng = np.random.default_rng(1)
    lines = np.linspace(-3, size + 3, cells + 1)
    grid = np.stack(np.meshgrid(lines, lines), axis=-1)
    grid[1:-1, 1:-1] += rng.uniform(-1.5, 1.5, (cells - 1, cells - 1, 2))
    grid[2:5, 2:5] = np.floor(grid[2:5, 2:5]) + 0.5  # edges through centres
    points = np.concatenate([grid.reshape(-1, 2), rng.uniform(0.4, 0.7, (grid.size // 2, 1))], axis=1)
    number = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = (n.ravel() for n in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    faces = torch.from_numpy(np.concatenate([np.stack([a, b, c], 1), np.stack([d, c, b], 1)]))
    projected = torch.from_numpy(points.astype(np.float32))
    covered = sum((rasterized(projected[face], size) != EMPTY).int() for face in faces)
    assert covered.unique().tolist() == [1]


def test_the_nearest_triangle_is_seen():
    size, count = 40, 30
    triangles = random_triangles(np.random.default_rng(2), count, size)
    keys = rasterized(triangles, size)
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    nearest, close = np.zeros((size, size)), np.zeros((size, size), bool)
    for triangle in triangles.astype(np.float64):
        inside, distance = covered_by_brute_force(triangle[:, :2], size)
        plane = np.linalg.pinv(np.c_[triangle[:, :2], np.ones(3)]) @ triangle[:, 2]  # slivers: the least squares
        inverse_depth = np.clip(plane[0] * x + plane[1] * y + plane[2], triangle[:, 2].min(), triangle[:, 2].max())
        nearest = np.where(inside, np.maximum(nearest, inverse_depth), nearest)
        close |= distance < 0.01
    sure = (nearest > 0) & ~close
    assert sure.sum() > size**2 / 3
    assert np.abs(inverse_depth_of(keys).numpy() - nearest)[sure].max() < 2e-4
    # and the key names the triangle whose depth it holds
    owner = triangle_of(keys).numpy()[sure]
    low, high = triangles[..., 2].min(1)[owner], triangles[..., 2].max(1)[owner]
    depth = inverse_depth_of(keys).numpy()[sure]
    assert (low <= depth).all()
    assert (depth <= high).all()


def test_many_views_at_once_are_as_one_by_one(monkeypatch):
    triangles = torch.from_numpy(random_triangles(np.random.default_rng(3), 60, 32))
    views = triangles.view(3, -1, 3).mT  # (3 views, xyw, 60 corners)
    faces = torch.arange(60).view(-1, 3).T
    together = rasterize(views, faces, 32)
    assert torch.equal(together, torch.stack([rasterized(some, 32) for some in triangles.view(3, 20, 3, 3)]))
    monkeypatch.setitem(BATCH, "cpu", 7)
    assert torch.equal(rasterize(views, faces, 32), together)


def test_a_sphere_has_the_outline_of_its_tangent_cone():
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    size = 128
    for distance in (1.5, 2.2):
        views = render_scene(
            scene_of(ball.vertices, ball.faces), look_at_origin(np.array([[0, -distance, 0.0]])), image_size=size
        )
        area = views[0, ..., 3].sum() / 255
        radius = FOCAL * size * math.tan(math.asin(0.5 / distance))
        assert math.sqrt(area / math.pi) == pytest.approx(radius, rel=0.004)
        columns = np.nonzero(views[0, ..., 3].any(0))[0]
        assert columns[0] + columns[-1] == size - 1  # centred


def test_a_cube_face_has_the_size_of_the_camera_equation():
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    front = [[0, 1, 4], [1, 5, 4]]  # y = -0.5
    back = [[2, 3, 6], [3, 7, 6]]
    views = render_scene(scene_of(corners, front + back), look_at_origin(np.array([[0, -2.0, 0]])), image_size=240)
    side = FOCAL * 240 * 1 / 1.5
    assert math.sqrt(views[0, ..., 3].sum() / 255) == pytest.approx(side, rel=0.002)


# ---- colours


def linear(srgb):
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def filmic(light):
    return np.clip(-0.00875 + 1.0465 / (1 + np.exp(-0.5587 * (np.log2(light / 0.18) - 0.6082))) ** 0.8223, 0, 1)


def shaded(albedo, point, normal):
    """Zero123's light on points (P, 3) that nothing shadows, as display values; normals face the camera."""
    towards = np.array(LIGHT) - point
    distance = np.linalg.norm(towards, axis=1)
    key = KEY * np.clip((towards @ normal) / distance, 0, None) / distance**2
    top = TOP * (BOUNCE + (1 - BOUNCE) * (0.5 + 0.5 * normal[2]))
    return filmic(albedo * (key[:, None] + top + AMBIENT))


def smooth_picture(side: int = 64) -> np.ndarray:
    """(S, S, 3) uint8 with a different slow slope in every channel and direction."""
    row, column = np.mgrid[:side, :side] / (side - 1)
    return (255 * np.stack([column, row, 0.2 + 0.5 * (1 - column) * row], axis=-1)).round().astype(np.uint8)


QUAD_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
QUAD_FACES = [[0, 1, 2], [0, 2, 3]]


def ray_traced_quad(corners, picture, eye, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(S, S, 3) and (S, S) bool, wholly inside: a textured parallelogram by rays, 2 x 2 a pixel, float64."""
    pose = look_at_origin(eye[None])[0]
    across, up = corners[1] - corners[0], corners[3] - corners[0]
    normal = np.cross(across, up)
    normal /= np.linalg.norm(normal)
    if normal @ (eye - corners[0]) < 0:
        normal = -normal
    total, inside = np.zeros((size, size, 3)), np.ones((size, size), bool)
    for dy in (0.25, 0.75):
        for dx in (0.25, 0.75):
            row, column = np.mgrid[:size, :size] + np.array([dy, dx])[:, None, None]
            at_camera = np.stack(
                [(column / size - 0.5) / FOCAL, (0.5 - row / size) / FOCAL, -np.ones((size, size))], axis=-1
            )
            ray = at_camera.reshape(-1, 3) @ pose[:, :3]
            point = eye + ray * (((corners[0] - eye) @ normal) / (ray @ normal))[:, None]
            uv = np.stack([(point - corners[0]) @ across / (across @ across), (point - corners[0]) @ up / (up @ up)], 1)
            inside &= ((uv > 0.03) & (uv < 0.97)).all(1).reshape(size, size)
            side = len(picture)
            x, y = uv[:, 0] * side - 0.5, (1 - uv[:, 1]) * side - 0.5  # v runs up, rows run down
            x0, y0 = np.clip(np.floor(x).astype(int), 0, side - 2), np.clip(np.floor(y).astype(int), 0, side - 2)
            fx, fy = (x - x0)[:, None], (y - y0)[:, None]
            texel = linear(picture / 255)
            albedo = (texel[y0, x0] * (1 - fx) + texel[y0, x0 + 1] * fx) * (1 - fy) + (
                texel[y0 + 1, x0] * (1 - fx) + texel[y0 + 1, x0 + 1] * fx
            ) * fy
            total += shaded(np.abs(albedo), point, normal).reshape(size, size, 3) / 4
    return total, inside


@pytest.mark.parametrize("eye", [(0.3, -1.6, 0.4), (1.4, -0.9, 0.3), (-0.9, -0.9, -1.1)])
def test_a_textured_quad_is_as_by_rays(eye):
    """Perspective, texture coordinates, bilinear sampling, light and tone, all in one."""
    corners = np.array([[-0.45, 0.1, -0.4], [0.45, -0.1, -0.4], [0.45, -0.1, 0.4], [-0.45, 0.1, 0.4]])
    picture, size, eye = smooth_picture(), 72, np.array(eye)
    scene = scene_of(corners, QUAD_FACES, colour=(1, 1, 1), uv=QUAD_UV, texture=picture)
    view = render_scene(scene, look_at_origin(eye[None]), image_size=size)[0]
    expected, inside = ray_traced_quad(corners, picture, eye, size)
    assert inside.sum() > 400
    assert (view[inside][:, 3] == 255).all()
    assert np.abs(view[inside][:, :3] / 255 - expected[inside]).max() < 0.6 / 255


@pytest.mark.parametrize("colour", [(0.9, 0.5, 0.02), (0.18, 0.18, 0.18)])
def test_a_linear_factor_goes_through_light_and_tone(colour):
    corners = np.array([[-0.4, 0, -0.4], [0.4, 0, -0.4], [0.4, 0, 0.4], [-0.4, 0, 0.4]])
    eye = np.array([0.0, -1.8, 0.0])
    view = render_scene(scene_of(corners, QUAD_FACES, colour=colour), look_at_origin(eye[None]), image_size=33)[0]
    white = np.full((2, 2, 3), 255, np.uint8)
    expected, _ = ray_traced_quad(corners, white, eye, 33)
    assert not np.allclose(view[16, 16, :3] / 255, expected[16, 16] * colour, atol=0.01)  # tone is no product
    light = shaded(np.array([colour]), np.zeros((1, 3)), np.array([0, -1.0, 0]))[0]
    assert np.abs(view[16, 16, :3] / 255 - light).max() < 1 / 255


def test_the_tone_curve_is_near_its_known_points():
    assert filmic(np.array(0.18)) == pytest.approx(0.5, abs=0.03)  # middle grey
    assert filmic(np.array(1e-6)) == 0
    assert filmic(np.array(16.0)) > 0.95


def test_what_lies_under_a_plate_is_in_shadow():
    plate = np.array([[-0.5, -0.5, -0.3], [0.5, -0.5, -0.3], [0.5, 0.5, -0.3], [-0.5, 0.5, -0.3]])
    towards_lamp = np.array(LIGHT) / np.linalg.norm(LIGHT) * 0.5
    roof = plate * [0.5, 0.5, 1] + towards_lamp
    poses = look_at_origin(np.array([[0.0, -1.9, 0.25]]))
    alone = render_scene(scene_of(plate, QUAD_FACES), poses, image_size=64)[0].astype(int)
    both_faces = [*QUAD_FACES, [4, 5, 6], [4, 6, 7]]
    under = render_scene(scene_of(np.concatenate([plate, roof]), both_faces), poses, image_size=64)[0].astype(int)
    at = torch.tensor([[0.0, 0.0, -0.3], [-0.45, -0.4, -0.3]]).T
    x, y, _ = project(at, torch.from_numpy(poses).float(), FOCAL, 64)[0]
    column, row = x.int().tolist(), y.int().tolist()
    middle, corner = (row[0], column[0]), (row[1], column[1])
    assert under[middle][0] < alone[middle][0] - 30
    assert (under[corner] == alone[corner]).all()
    assert np.isclose(filmic(np.array(0.5 * (TOP + AMBIENT))), under[middle][0] / 255, atol=1 / 255)


def test_a_lone_plate_does_not_shadow_itself():
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0.0]])
    view = render_scene(scene_of(corners, QUAD_FACES), look_at_origin(np.array([[0, -1.0, 1.5]])), image_size=48)[0]
    inside = view[..., 3] == 255
    assert view[inside][:, 0].min() > 0.9 * view[inside][:, 0].max()


def test_both_sides_of_a_face_are_lit():
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0.0]])
    poses = look_at_origin(np.array([[0.1, -1.0, 1.5]]))
    front = render_scene(scene_of(corners, QUAD_FACES), poses, image_size=32)
    back = render_scene(scene_of(corners, np.array(QUAD_FACES)[:, [2, 1, 0]]), poses, image_size=32)
    assert np.abs(front.astype(int) - back).max() <= 1


def test_the_background_is_transparent_and_edges_are_straight_alpha():
    corners = np.array([[-0.4, 0, -0.4], [0.4, 0, -0.4], [0.37, 0, 0.4], [-0.4, 0, 0.4]])
    view = render_scene(scene_of(corners, QUAD_FACES), look_at_origin(np.array([[0, -2.0, 0]])), image_size=50)[0]
    assert (view[0] == 0).all()
    partly = view[(view[..., 3] > 0) & (view[..., 3] < 255)]
    assert len(partly)
    assert partly[:, 0].min() > 0.9 * view[25, 25, 0]  # not darkened by the background


# ---- cameras


@pytest.mark.parametrize("camera", ["zero123", "ring", "sphere"])
def test_cameras_look_at_the_object_from_the_right_distance(camera):
    poses = poses_of("chair", num_views=64, seed=3, camera=camera)
    rotation, translation = poses[:, :, :3], poses[:, :, 3]
    assert poses.shape == (64, 3, 4)
    assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(rotation), 1)
    assert np.allclose(translation[:, :2], 0, atol=1e-12)  # the origin is in the middle of the picture
    distance = -translation[:, 2]
    assert (distance >= 1.5).all()
    assert (distance <= 2.2).all()
    assert (rotation[:, 1, 2] >= -1e-12).all()  # up is up


def test_cameras_straight_above_and_below_have_axes_too():
    rotation = look_at_origin(np.array([[0, 0, 2.0], [0, 0, -2.0]]))[:, :, :3]
    assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-12)


def test_zero123s_cameras_are_uniform_in_a_cube_seen_from_its_middle():
    poses = poses_of("chair", num_views=4000, seed=0)
    eyes = -(poses[:, :, :3].transpose(0, 2, 1) @ poses[:, :, 3:])[..., 0]
    direction = eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    assert np.abs(direction.mean(0)).max() < 0.03
    assert (direction[:, 2] < 0).mean() == pytest.approx(0.5, abs=0.03)  # from below as well
    corners = (np.abs(direction) > 0.5).all(1).mean()  # a cube has more of these than a ball: 3/16 against 0.12
    rng = np.random.default_rng(0)
    cube = rng.uniform(-1, 1, (100_000, 3))
    cube /= np.linalg.norm(cube, axis=1, keepdims=True)
    assert corners == pytest.approx((np.abs(cube) > 0.5).all(1).mean(), abs=0.02)


def test_cameras_depend_on_seed_and_object_and_on_nothing_else():
    assert np.array_equal(poses_of("chair", num_views=4, seed=0), poses_of("chair", num_views=4, seed=0))
    assert not np.allclose(poses_of("chair", num_views=4, seed=0), poses_of("chair", num_views=4, seed=1))
    assert not np.allclose(poses_of("chair", num_views=4, seed=0), poses_of("table", num_views=4, seed=0))
