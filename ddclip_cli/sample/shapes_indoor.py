"""Categories found in a house."""

from __future__ import annotations

import numpy as np

from ddclip_cli.sample.shapes import CORNERS, LONG_LEGS, LOW, SIDES, TALL, Part, Traits, category
from ddclip_cli.sample.solids import arc, box, cylinder, extrusion, lathe, pyramids, sphere, torus, tube


@category("couch", "sofa", traits=(LOW, LONG_LEGS))
def couch(rng: np.random.Generator, traits: Traits) -> list[Part]:
    width, depth, legs = rng.uniform(2.0, 2.7), rng.uniform(0.9, 1.1), 0.34 if LONG_LEGS in traits else 0.14
    back, arm, seats = rng.uniform(0.45, 0.7), rng.uniform(0.16, 0.3), int(rng.integers(2, 4))
    parts = [
        ("main", box(width, 0.28, depth)),
        ("main", box(width, back, 0.24, top=(1, 0.7)).moved(0, back / 2, 0.12 - depth / 2)),
    ]
    for side in SIDES:
        parts.append(("main", box(arm, 0.55, depth).moved(side * (width - arm) / 2, 0.2)))
        parts.append(("main", cylinder(arm * 0.62, depth).turned("x", 90).moved(side * (width - arm) / 2, 0.46)))
    cushion = (width - 2 * arm) / seats
    for k in range(seats):
        x = (k + 0.5) * cushion - width / 2 + arm
        parts.append(("main", box(cushion * 0.94, 0.16, depth - 0.3, top=0.9).moved(x, 0.21, 0.12)))
        parts.append(
            ("main", box(cushion * 0.9, back * 0.7, 0.16, top=0.85).moved(x, 0.25 + back * 0.35, 0.3 - depth / 2))
        )
    if rng.random() < 0.5:
        parts.append(
            (
                "light",
                box(0.36, 0.36, 0.12)
                .turned("x", -20)
                .moved(rng.choice(SIDES) * (width / 2 - arm - 0.25), 0.5, 0.5 - depth / 2),
            )
        )
    return parts + [
        (
            "wood",
            cylinder(0.03, legs, top=0.05, segments=8).moved(
                x * (width / 2 - 0.15), -0.14 - legs / 2, z * (depth / 2 - 0.12)
            ),
        )
        for x, z in CORNERS
    ]


@category("chair", traits=(TALL, LONG_LEGS))
def chair(rng: np.random.Generator, traits: Traits) -> list[Part]:
    width, legs, back = rng.uniform(0.46, 0.56), 0.8 if LONG_LEGS in traits else 0.45, rng.uniform(0.6, 0.8)
    thick, slats, inset = rng.uniform(0.05, 0.07), int(rng.integers(2, 5)), width / 2 - 0.04
    parts = [("main", box(width, 0.07, width))]
    parts += [("main", box(thick, legs, thick).moved(x * inset, -legs / 2, z * inset)) for x, z in CORNERS]
    parts += [("dark", box(thick * 1.1, 0.05, thick * 1.1).moved(x * inset, -legs, z * inset)) for x, z in CORNERS]
    parts += [("main", box(thick, back, thick).moved(x * inset, back / 2, -inset)) for x in SIDES]
    for k in range(slats):
        y = back * (0.35 + 0.6 * (k + 0.5) / slats)
        parts.append(("main", box(width - 0.1, 0.5 * back / slats * 0.75, 0.035).moved(0, y, -inset)))
    parts += [("main", box(0.035, 0.035, width - 0.1).moved(x * inset, -legs * 0.6, 0)) for x in SIDES]
    return parts


@category("bookshelf", "bookcase", traits=(TALL, LOW))
def bookshelf(rng: np.random.Generator, traits: Traits) -> list[Part]:
    width, height, depth, shelves = (
        rng.uniform(0.8, 1.1),
        rng.uniform(1.4, 1.7),
        rng.uniform(0.28, 0.36),
        int(rng.integers(3, 6)),
    )
    parts = [("main", box(0.07, height, depth).moved(x * width / 2, height / 2)) for x in SIDES]
    gap = (height - 0.07) / shelves
    parts += [("main", box(width, 0.06, depth).moved(0, k * gap + 0.035)) for k in range(shelves + 1)]
    for k in range(shelves):
        x, end = -width / 2 + 0.06, width * rng.uniform(-0.1, 0.3)
        while x < end:
            thick, tall = rng.uniform(0.05, 0.09), gap * rng.uniform(0.55, 0.8)
            colour = rng.choice(["light", "wood", "dark", "main", "main", "main"])
            parts.append(
                (str(colour), box(thick * 0.9, tall, depth * 0.6).moved(x + thick / 2, k * gap + 0.065 + tall / 2))
            )
            x += thick
    return parts


@category("lamp", "desk lamp", traits=(TALL,))
def lamp(rng: np.random.Generator, traits: Traits) -> list[Part]:
    lower, upper, bend = rng.uniform(0.55, 0.75), rng.uniform(0.5, 0.65), rng.uniform(20, 40)
    elbow = np.array([-np.sin(np.radians(bend)) * lower, np.cos(np.radians(bend)) * lower, 0])
    head = elbow + np.array([np.cos(np.radians(30)), np.sin(np.radians(30)), 0]) * upper
    shade = lathe([(0, 0.16), (0.1, 0.14), (0.3, -0.22), (0.27, -0.22), (0.08, 0.1), (0, 0.11)], 20).turned(
        "z", rng.uniform(15, 35)
    )
    return [
        ("main", cylinder(rng.uniform(0.28, 0.36), 0.08, segments=24)),
        ("main", tube([(0, 0, 0), elbow], 0.04)),
        ("main", tube([elbow, head], 0.04)),
        ("dark", sphere(0.075, 10).moved(*elbow)),
        ("dark", cylinder(0.06, 0.08, segments=10).moved(0, 0.06)),
        ("main", shade.moved(*head)),
        ("light", sphere(0.11, 10).moved(head[0] + 0.03, head[1] - 0.08)),
    ]


@category("mug", "cup", traits=(TALL, LOW))
def mug(rng: np.random.Generator, traits: Traits) -> list[Part]:
    radius, height, foot = rng.uniform(0.36, 0.46), rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.0)
    wall = [
        (0, 0),
        (radius * foot, 0),
        (radius, height * 0.3),
        (radius, height),
        (radius - 0.06, height),
        (radius - 0.06, 0.08),
        (0, 0.08),
    ]
    handle = tube(arc(rng.uniform(0.24, 0.3), -100, 100, 10) * (1, 1.1, 1), 0.06).moved(radius + 0.02, height * 0.5)
    coffee = cylinder(radius - 0.05, 0.02, segments=20).moved(0, height * 0.55)
    return [("main", lathe(wall, 24)), ("main", handle), ("wood", coffee)]


@category("guitar", traits=())
def guitar(rng: np.random.Generator, traits: Traits) -> list[Part]:
    waist, depth, neck = rng.uniform(0.2, 0.27), rng.uniform(0.16, 0.24), rng.uniform(0.75, 0.95)
    outline = [
        (0.1, 0.0),
        (0.34, 0.06),
        (0.42, 0.25),
        (0.36, 0.43),
        (waist, 0.55),
        (0.29, 0.72),
        (0.27, 0.86),
        (0.12, 0.95),
    ]
    body = extrusion(outline + [(-x, y) for x, y in reversed(outline)], depth)
    face = depth / 2
    return [
        ("main", body),
        ("dark", cylinder(0.1, 0.02).turned("x", 90).moved(0, 0.62, face)),
        ("dark", box(0.26, 0.05, 0.05).moved(0, 0.3, face)),
        ("main", box(0.11, neck, 0.08).moved(0, 0.9 + neck / 2, face - 0.05)),
        ("wood", box(0.09, neck + 0.15, 0.03).moved(0, 0.84 + neck / 2, face)),
        ("main", box(0.17, 0.26, 0.07, top=1.25).moved(0, 1.0 + neck, face - 0.06)),
        *[("metal", box(0.34, 0.03, 0.03).moved(0, 0.94 + neck + 0.07 * k, face - 0.06)) for k in range(3)],
    ]


@category("hammer", traits=())
def hammer(rng: np.random.Generator, traits: Traits) -> list[Part]:
    length, radius, head = rng.uniform(1.1, 1.35), rng.uniform(0.055, 0.075), rng.uniform(0.13, 0.17)
    parts = [
        ("main", cylinder(radius, length, segments=12)),
        ("dark", cylinder(radius * 1.25, length * 0.22, segments=12).moved(0, -length * 0.4)),
    ]
    parts.append(("main", box(head * 2, head * 1.7, head * 1.7).moved(0, length / 2)))
    parts.append(("main", cylinder(head * 0.7, 0.16).turned("z", 90).moved(head + 0.06, length / 2)))
    parts.append(("main", cylinder(head * 1.15, 0.16).turned("z", 90).moved(head + 0.18, length / 2)))
    for z in SIDES:
        claw = [
            (-head, length / 2, z * 0.05),
            (-head - 0.2, length / 2 + 0.03, z * 0.08),
            (-head - 0.4, length / 2 - 0.16, z * 0.11),
        ]
        parts.append(("main", tube(claw, [0.1, 0.075, 0.02])))
    return parts


@category("ladder", traits=())
def ladder(rng: np.random.Generator, traits: Traits) -> list[Part]:
    width, height, rungs, thick = (
        rng.uniform(0.42, 0.56),
        rng.uniform(1.6, 2.0),
        int(rng.integers(5, 8)),
        rng.uniform(0.07, 0.09),
    )
    parts = [("main", box(thick, height, thick * 1.3).moved(x * width / 2)) for x in SIDES]
    parts += [("dark", box(thick * 1.2, 0.07, thick * 1.6).moved(x * width / 2, -height / 2)) for x in SIDES]
    rung = box(width, thick * 0.8, thick)
    return parts + [("main", rung.moved(0, height * ((k + 0.5) / rungs - 0.5))) for k in range(rungs)]


@category("umbrella", "parasol", traits=())
def umbrella(rng: np.random.Generator, traits: Traits) -> list[Part]:
    radius, height, panels, length = (
        rng.uniform(0.75, 0.9),
        rng.uniform(0.36, 0.46),
        int(rng.integers(7, 10)),
        rng.uniform(1.15, 1.35),
    )
    angle = np.radians([90, 70, 50, 30, 12, 0])
    outer = np.stack([np.cos(angle) * radius, np.sin(angle) * height], axis=1)
    outer[0, 0] = 0
    inner = outer[::-1] * (0.98, 0.93)
    canopy = lathe([*outer, *inner], panels)
    hook = tube(np.add(arc(0.12, 0, -180, 9), (-0.12, height - length, 0)), 0.04)
    stick = tube([(0, height + 0.1, 0), (0, height - length, 0)], 0.028)
    return [
        ("main", canopy),
        ("metal", stick),
        ("main", hook),
        ("dark", cylinder(0.03, 0.14, top=0.0, segments=8).moved(0, height + 0.06)),
    ]


@category("donut", "doughnut", traits=())
def donut(rng: np.random.Generator, traits: Traits) -> list[Part]:
    radius, thick = rng.uniform(0.52, 0.62), rng.uniform(0.22, 0.3)
    angle = np.radians(np.linspace(-5, 185, 10))
    icing = np.stack([radius + 1.06 * thick * np.cos(angle), 1.06 * thick * np.sin(angle)], axis=1)
    parts = [("main", torus(radius, thick, 26, 12)), ("shade", lathe(icing, 26))]
    for _ in range(int(rng.integers(16, 26))):
        around, out, colour = rng.uniform(0, 360), rng.uniform(40, 140), str(rng.choice(["light", "metal", "dark"]))
        x, y = radius + 1.08 * thick * np.cos(np.radians(out)), 1.08 * thick * np.sin(np.radians(out))
        parts.append(
            (
                colour,
                box(0.09, 0.035, 0.035)
                .turned("y", rng.uniform(0, 180))
                .turned("z", out - 90)
                .moved(x, y)
                .turned("y", around),
            )
        )
    return parts


@category("robot", traits=(TALL, LONG_LEGS))
def robot(rng: np.random.Generator, traits: Traits) -> list[Part]:
    width, body, legs = rng.uniform(0.5, 0.65), rng.uniform(0.5, 0.65), 0.75 if LONG_LEGS in traits else 0.4
    head, arm, depth = rng.uniform(0.32, 0.4), rng.uniform(0.45, 0.6), rng.uniform(0.32, 0.4)
    top = body / 2 + 0.08 + head / 2
    parts = [
        ("main", box(width, body, depth)),
        ("main", box(head, head, head).moved(0, top)),
        ("metal", cylinder(0.08, 0.1, segments=10).moved(0, body / 2 + 0.04)),
    ]
    parts.append(("light", box(width * 0.5, body * 0.35, 0.03).moved(0, 0.04, depth / 2)))
    parts += [
        ("main", tube([(0, top + head / 2, 0), (0, top + head / 2 + 0.2, 0)], 0.02)),
        ("light", sphere(0.05, 8).moved(0, top + head / 2 + 0.22)),
    ]
    for x in SIDES:
        parts.append(("dark", sphere(0.055, 8).moved(x * head * 0.24, top + 0.05, head / 2)))
        parts.append(("main", box(0.15, legs, 0.17).moved(x * width * 0.28, -body / 2 - legs / 2)))
        parts.append(("main", box(0.2, 0.1, 0.32).moved(x * width * 0.28, -body / 2 - legs, 0.05)))
        parts.append(
            (
                "main",
                box(0.13, arm, 0.14)
                .moved(0, -arm / 2)
                .turned("z", x * rng.uniform(8, 50))
                .moved(x * (width / 2 + 0.07), body / 2 - 0.05),
            )
        )
        parts.append(("metal", sphere(0.1, 8).moved(x * (width / 2 + 0.05), body / 2 - 0.06)))
    return parts


@category("star", traits=())
def star(rng: np.random.Generator, traits: Traits) -> list[Part]:
    inner, depth = rng.uniform(0.36, 0.46), rng.uniform(0.5, 0.75)
    points = [arc(1 if k % 2 == 0 else inner, 90 + 36 * k, 90 + 36 * k, 1)[0, :2] for k in range(10)]
    return [("main", pyramids(points, depth))]
