"""Categories found out of doors."""

from __future__ import annotations

import numpy as np

from ddclip_cli.sample.shapes import CORNERS, LOW, SIDES, TALL, Part, Traits, category
from ddclip_cli.sample.solids import Solid, arc, box, cylinder, extrusion, lathe, loft, sphere, torus, tube


@category("airplane", "plane", "aircraft", traits=())
def airplane(rng: np.random.Generator, traits: Traits) -> list[Part]:
    length, radius, span = rng.uniform(1.7, 2.1), rng.uniform(0.14, 0.18), rng.uniform(0.85, 1.1)
    sweep, chord = rng.uniform(0.2, 0.5), rng.uniform(0.38, 0.5)
    profile = [(0, 1), (0.55, 0.95), (0.9, 0.84), (1, 0.7), (1, -0.35), (0.55, -0.8), (0.2, -1), (0, -1)]
    body = lathe([(r * radius, y * length / 2) for r, y in profile], 14).turned("x", 90)
    wing = extrusion([(0, chord / 2), (span, -sweep), (span, -sweep - chord * 0.4), (0, -chord / 2)], 0.05).turned(
        "x", 90
    )
    tail = wing.scaled(0.4, 1, 0.5).moved(0, 0.03, -length * 0.43)
    parts = [("main", body), ("main", wing), ("main", wing.scaled(-1)), ("main", tail), ("main", tail.scaled(-1))]
    parts.append(
        (
            "main",
            extrusion([(0, 0), (0.3, 0), (0, 0.45), (-0.12, 0.45)], 0.05)
            .turned("y", -90)
            .moved(0, radius * 0.4, -length * 0.48),
        )
    )
    parts.append(("glass", sphere(radius * 0.62, 10).scaled(1, 0.7, 1.5).moved(0, radius * 0.55, length * 0.37)))
    engine = cylinder(0.075, 0.26, segments=10).turned("x", 90)
    return parts + [("dark", engine.moved(x * span * 0.45, -0.08, 0.1 - sweep * 0.3)) for x in SIDES]


@category("bicycle", "bike", traits=())
def bicycle(rng: np.random.Generator, traits: Traits) -> list[Part]:
    radius, base, thick = rng.uniform(0.4, 0.46), rng.uniform(0.54, 0.6), rng.uniform(0.05, 0.065)
    wheel = torus(radius, thick, 24, 6).turned("x", 90)
    hub, seat, steer, crank = (-base, 0, 0), (-0.22, 0.62, 0), (base - 0.16, 0.6, 0), (-0.08, -0.02, 0)
    bars = [(hub, seat), (seat, steer), (hub, crank), (crank, steer), (crank, seat), (steer, (base, 0, 0))]
    parts = [("main", wheel.moved(x * base)) for x in SIDES] + [("main", tube(bar, thick)) for bar in bars]
    for x in SIDES:
        spokes = [tube([-point, point], 0.012, 4).moved(x * base) for point in arc(radius, 0, 180, 5)[:-1]]
        parts += [("metal", spoke) for spoke in spokes]
    parts.append(("main", tube([steer, (base - 0.22, 0.78, 0)], thick)))
    parts.append(("main", tube([(base - 0.22, 0.78, -0.28), (base - 0.22, 0.78, 0.28)], thick * 0.8)))
    parts += [("dark", tube([(base - 0.22, 0.78, z * 0.2), (base - 0.26, 0.78, z * 0.32)], thick)) for z in SIDES]
    parts += [
        ("dark", box(0.3, 0.08, 0.17, top=0.8).moved(-0.26, 0.68)),
        ("dark", cylinder(0.1, 0.08).turned("x", 90).moved(*crank)),
    ]
    return parts + [("dark", box(0.12, 0.03, 0.1).moved(crank[0], z * 0.17 - 0.02, z * 0.14)) for z in SIDES]


@category("boat", "sailboat", traits=(TALL,))
def boat(rng: np.random.Generator, traits: Traits) -> list[Part]:
    length, width, mast = rng.uniform(0.7, 0.85), rng.uniform(0.26, 0.34), rng.uniform(1.1, 1.4)
    deck = np.array(
        [
            (length, 0),
            (length * 0.6, width * 0.75),
            (0, width),
            (-length, width * 0.7),
            (-length, -width * 0.7),
            (0, -width),
            (length * 0.6, -width * 0.75),
        ]
    )
    hull = loft(deck * (0.75, 0.45), deck, 0.36)
    sail = extrusion([(-0.04, 0.0), (-0.04, mast * 0.85), (-length * 0.85, 0.0)], 0.04).moved(0, 0.4)
    jib = extrusion([(0.06, 0.0), (length * 0.8, -0.05), (0.06, mast * 0.7)], 0.04).moved(0, 0.36)
    return [
        ("main", hull),
        ("wood", loft(deck * 0.85, deck * 0.85, 0.04).moved(0, 0.17)),
        ("main", sail.turned("y", rng.uniform(-20, 20))),
        ("main", jib.turned("y", rng.uniform(-15, 15))),
        ("wood", tube([(0, 0, 0), (0, mast + 0.35, 0)], 0.03)),
        ("main", box(length * 0.5, 0.16, width * 0.9).moved(-length * 0.5, 0.24)),
    ]


@category("cactus", traits=(TALL,))
def cactus(rng: np.random.Generator, traits: Traits) -> list[Part]:
    height, radius = rng.uniform(1.2, 1.5), rng.uniform(0.16, 0.2)
    profile = [(0, 0), (radius, 0), (radius, height - radius), (radius * 0.75, height - radius * 0.35), (0, height)]
    parts = [("main", lathe(profile, 32, ribs=(8, 0.1)))]
    for side in SIDES:
        y, out, up = rng.uniform(0.35, 0.75), rng.uniform(0.38, 0.48), rng.uniform(0.3, 0.5)
        bend = [(0, y, 0), (out * 0.75, y, 0), (out * 0.95, y + 0.08, 0), (out, y + 0.2, 0), (out, y + 0.2 + up, 0)]
        thick = radius * rng.uniform(0.6, 0.75)
        arm = [tube(bend, thick), sphere(thick, 10).moved(*bend[-1])]
        parts += [("main", solid.scaled(side)) for solid in arm]
        if rng.random() < 0.5:
            parts.append(("light", sphere(0.07, 8).moved(side * bend[-1][0], bend[-1][1] + thick)))
    return [*parts, ("wood", cylinder(radius * 1.2, 0.18, top=radius * 1.5).moved(0, 0.0))]


@category("car", "automobile", traits=(LOW,))
def car(rng: np.random.Generator, traits: Traits) -> list[Part]:
    length, width, wheel = rng.uniform(0.95, 1.1), rng.uniform(0.8, 0.9), rng.uniform(0.19, 0.23)
    roof, front, rear = rng.uniform(0.62, 0.74), rng.uniform(0.35, 0.5), rng.uniform(0.55, 0.9)
    side = [(-length, 0), (length, 0), (length, 0.22), (length * 0.92, 0.3), (-length, 0.34), (-length * 1.02, 0.15)]
    x0, x1 = -length * rear, length * front
    cabin = loft(
        np.array([(x0, -0.48), (x1, -0.48), (x1, 0.48), (x0, 0.48)]) * (1, width),
        np.array([(x0 + 0.2, -0.4), (x1 - 0.3, -0.4), (x1 - 0.3, 0.4), (x0 + 0.2, 0.4)]) * (1, width),
        roof - 0.3,
    )
    y = (roof + 0.3) / 2
    parts = [("main", extrusion(side, width)), ("main", cabin.moved(0, y))]
    # Windows stick out of the cabin by a little on all four sides.
    middle = (x0 + x1 - 0.1) / 2
    parts.append(("glass", cabin.moved(-middle).scaled(0.86, 0.6, 1.03).moved(middle, y)))
    parts.append(("glass", cabin.moved(-middle).scaled(1.03, 0.6, 0.84).moved(middle, y)))
    for x, z in CORNERS:
        parts.append(
            (
                "dark",
                cylinder(wheel, 0.16, segments=16)
                .turned("x", 90)
                .moved(x * length * 0.62, 0.02, z * (width / 2 - 0.05)),
            )
        )
        parts.append(
            (
                "metal",
                cylinder(wheel * 0.55, 0.18, segments=10)
                .turned("x", 90)
                .moved(x * length * 0.62, 0.02, z * (width / 2 - 0.05)),
            )
        )
        parts.append(("light", box(0.04, 0.09, 0.16).moved(x * length, 0.2, z * width * 0.34)))
    return parts


@category("fish", traits=(LOW, TALL))
def fish(rng: np.random.Generator, traits: Traits) -> list[Part]:
    length, height, width, tail = (
        rng.uniform(0.75, 0.9),
        rng.uniform(0.32, 0.42),
        rng.uniform(0.2, 0.26),
        rng.uniform(0.35, 0.45),
    )
    parts = [("main", sphere(1, 18).scaled(length, height, width))]
    parts.append(("main", extrusion([(0.25, 0), (-0.2, tail), (-0.1, 0), (-0.2, -tail)], 0.07).moved(-length - 0.05)))
    parts.append(("main", extrusion([(0.3, 0), (-0.1, 0.26), (-0.35, 0.2), (-0.4, 0)], 0.06).moved(0, height * 0.85)))
    for z in SIDES:
        fin = extrusion([(0.12, 0), (-0.12, 0.0), (-0.22, -0.3)], 0.04).turned("x", -z * 50)
        parts.append(("main", fin.moved(0.2, -height * 0.2, z * width * 0.85)))
        parts.append(("light", sphere(0.08, 10).moved(length * 0.68, height * 0.28, z * width * 0.62)))
        parts.append(("dark", sphere(0.05, 8).moved(length * 0.7, height * 0.28, z * (width * 0.62 + 0.05))))
    return parts


@category("house", "cottage", traits=(TALL, LOW))
def house(rng: np.random.Generator, traits: Traits) -> list[Part]:
    width, depth, wall, roof = (
        rng.uniform(1.2, 1.5),
        rng.uniform(0.9, 1.1),
        rng.uniform(0.6, 0.75),
        rng.uniform(0.45, 0.65),
    )
    gable = extrusion(
        [(-depth / 2, 0), (depth / 2, 0), (depth / 2, wall), (0, wall + roof), (-depth / 2, wall)], width
    ).turned("y", 90)
    over = depth / 2 + 0.1
    slope = [
        (-over, wall - 0.08),
        (-over, wall),
        (0, wall + roof + 0.08),
        (over, wall),
        (over, wall - 0.08),
        (0, wall + roof),
    ]
    parts = [("main", gable), ("shade", extrusion(slope, width + 0.2).turned("y", 90))]
    parts.append(("wood", box(0.22, 0.42, 0.06).moved(rng.uniform(-0.15, 0.15), 0.21, depth / 2)))
    for x in SIDES:
        parts += [("glass", box(0.22, 0.22, 0.06).moved(x * width * 0.33, wall * 0.6, z * depth / 2)) for z in SIDES]
        parts += [("glass", box(0.06, 0.24, 0.24).moved(x * width / 2, wall * 0.6, z * depth * 0.24)) for z in SIDES]
    return [
        *parts,
        ("wood", box(0.16, 0.5, 0.16).moved(rng.choice(SIDES) * width * 0.28, wall + roof * 0.85, depth * 0.14)),
    ]


@category("mushroom", "toadstool", traits=(TALL, LOW))
def mushroom(rng: np.random.Generator, traits: Traits) -> list[Part]:
    radius, dome, stem, height = (
        rng.uniform(0.55, 0.68),
        rng.uniform(0.4, 0.55),
        rng.uniform(0.16, 0.22),
        rng.uniform(0.55, 0.75),
    )
    angle = np.radians(np.linspace(0, 90, 7))
    cap = [(0, 0.06), (radius * 0.85, -0.04), *np.stack([np.cos(angle) * radius, np.sin(angle) * dome], axis=1)]
    cap[-1] = (0, dome)
    parts = [
        ("main", lathe(cap, 20).moved(0, height)),
        ("main", lathe([(0, 0), (stem * 1.35, 0), (stem, 0.2), (stem * 0.85, height + 0.05), (0, height + 0.05)], 14)),
    ]
    for k in range(int(rng.integers(7, 11))):
        up, around = np.radians(rng.uniform(15, 75)), 2.4 * k
        at = np.array([np.cos(up) * np.cos(around) * radius, np.sin(up) * dome, np.cos(up) * np.sin(around) * radius])
        parts.append(("light", sphere(rng.uniform(0.06, 0.1), 8).moved(*(at * 0.96)).moved(0, height)))
    return parts


@category("rocket", "spaceship", traits=(TALL,))
def rocket(rng: np.random.Generator, traits: Traits) -> list[Part]:
    radius, height, fins, spread = (
        rng.uniform(0.2, 0.26),
        rng.uniform(1.2, 1.5),
        int(rng.integers(3, 5)),
        rng.uniform(0.28, 0.38),
    )
    profile = [
        (0, 0),
        (radius * 0.7, 0),
        (radius, 0.25),
        (radius, height * 0.6),
        (radius * 0.75, height * 0.82),
        (radius * 0.35, height * 0.95),
        (0, height),
    ]
    fin = extrusion([(radius * 0.6, 0.0), (radius + spread, -0.25), (radius + spread, 0.05), (radius * 0.8, 0.5)], 0.07)
    parts = [("main", lathe(profile, 18)), ("dark", cylinder(radius * 0.65, 0.16, top=radius * 0.4).moved(0, -0.06))]
    parts += [("main", fin.turned("y", 360 * k / fins)) for k in range(fins)]
    turn = 180 / fins
    window = cylinder(radius * 0.42, 0.08).turned("z", 90).moved(radius, height * 0.5)
    return [
        *parts,
        ("glass", window.turned("y", turn)),
        ("glass", window.turned("y", turn + 180)),
        ("metal", torus(radius, 0.03, 18, 6).moved(0, height * 0.28)),
    ]


@category("snowman", traits=(TALL,))
def snowman(rng: np.random.Generator, traits: Traits) -> list[Part]:
    low, middle, head = rng.uniform(0.44, 0.52), rng.uniform(0.31, 0.37), rng.uniform(0.22, 0.26)
    y1, y2 = low + middle * 0.65, low + middle * 1.35 + head * 0.65
    parts = [
        ("main", sphere(low, 18)),
        ("main", sphere(middle, 18).moved(0, y1)),
        ("main", sphere(head, 16).moved(0, y2)),
    ]
    parts.append(("carrot", cylinder(0.05, 0.3, top=0.0, segments=8).turned("x", 90).moved(0, y2, head + 0.12)))
    parts += [
        ("dark", cylinder(head * 1.15, 0.04).moved(0, y2 + head * 0.8)),
        ("dark", cylinder(head * 0.7, 0.24).moved(0, y2 + head * 0.8 + 0.12)),
    ]
    parts += [("dark", sphere(0.035, 6).moved(x * 0.08, y2 + 0.06, head * 0.93)) for x in SIDES]
    parts += [("dark", sphere(0.04, 6).moved(0, y1 + y, middle * 0.97)) for y in (-0.08, 0.1)]
    return parts + [
        ("wood", tube([(x * middle * 0.9, y1, 0), (x * (middle + 0.45), y1 + rng.uniform(0.1, 0.35), 0)], 0.03, 6))
        for x in SIDES
    ]


@category("tree", "pine tree", traits=(TALL,))
def tree(rng: np.random.Generator, traits: Traits) -> list[Part]:
    layers, width, trunk = int(rng.integers(3, 5)), rng.uniform(0.5, 0.62), rng.uniform(0.25, 0.4)
    parts: list[Part] = [("wood", cylinder(0.1, trunk + 0.2, segments=10).moved(0, trunk / 2))]
    y = trunk
    for k in range(layers):
        radius, height = width * (1 - 0.22 * k), rng.uniform(0.5, 0.6)
        cone: Solid = lathe(
            [(0, 0.06), (radius, 0), (radius * 0.2, height * 0.8), (0, height)], int(rng.integers(8, 13))
        )
        parts.append(("main", cone.turned("y", rng.uniform(0, 90)).moved(0, y)))
        y += height * 0.58
    return parts


@category("windmill", traits=(TALL,))
def windmill(rng: np.random.Generator, traits: Traits) -> list[Part]:
    height, radius, blade, tilt = (
        rng.uniform(1.0, 1.2),
        rng.uniform(0.3, 0.38),
        rng.uniform(0.7, 0.85),
        rng.uniform(0, 90),
    )
    front = radius * 0.75 + 0.16
    parts = [
        ("main", cylinder(radius, height, top=radius * 0.62, segments=8).moved(0, height / 2)),
        ("shade", cylinder(radius * 0.72, 0.32, top=0.0, segments=8).moved(0, height + 0.16)),
    ]
    parts += [
        ("dark", tube([(0, height * 0.93, 0), (0, height * 0.93, front + 0.06)], 0.05)),
        ("wood", box(0.2, 0.34, 0.1).moved(0, 0.17, radius * 0.86)),
    ]
    for k in range(4):
        arm = [
            ("wood", box(0.05, blade, 0.04).moved(0, blade / 2)),
            ("main", box(0.2, blade * 0.75, 0.03).moved(0.09, blade * 0.6, 0.01)),
        ]
        parts += [
            (material, solid.turned("z", tilt + 90 * k).moved(0, height * 0.93, front)) for material, solid in arm
        ]
    return parts
