"""Shapes10: ten classes drawn at 32x32 in colour. Seeded; nothing to download.

One shape per picture at a random place, size, tilt and colour, on a background with a colour gradient, under
stray lines and pixel noise. numpy only.
"""

import numpy as np

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "half disc", "bars", "angle")
COUNTS = {"train": 4000, "test": 1000}
SEEDS = {"train": 2021, "test": 2022}
SIZE = 32


def draw(split: str) -> tuple[np.ndarray, np.ndarray]:
    """images (N, 3, 32, 32) uint8 and labels (N,) int64 of "train" or "test"; the classes alternate."""
    random = np.random.default_rng(SEEDS[split])
    labels = np.arange(COUNTS[split]) % len(CLASSES)
    n = len(labels)
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))

    size = random.uniform(0.42, 0.75, (n, 1, 1))
    turn = random.uniform(-0.35, 0.35, (n, 1, 1))  # radians
    left, up = random.uniform(-0.25, 0.25, (2, n, 1, 1))
    u = ((x - left) * np.cos(turn) + (y - up) * np.sin(turn)) / size
    v = ((y - up) * np.cos(turn) - (x - left) * np.sin(turn)) / size
    distance = np.empty((n, SIZE, SIZE))
    for label, name in enumerate(CLASSES):
        members = labels == label
        distance[members] = _distance(name, u[members], v[members])
    cover = _cover(distance * size)

    base, (across, down) = random.uniform(0.1, 0.9, (n, 3, 1, 1)), random.normal(0, 0.12, (2, n, 3, 1, 1))
    background = base + (across * x + down * y)  # (n, 3, 32, 32), a colour slope across each picture
    ink = _contrasting(random, background.mean((2, 3)))
    picture = background + cover[:, None] * (ink[:, :, None, None] - background)
    for _ in range(2):
        picture = _stray_line(random, picture, x, y)
    picture += random.normal(0, 0.05, picture.shape)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8), labels.astype(np.int64)


def _distance(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Approximate signed distance to the shape's outline, negative inside; the shape fits the unit disc."""
    radius = np.hypot(u, v)

    def box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
        return np.maximum(np.abs(x) - width, np.abs(y) - height)

    match name:
        case "disc":
            return radius - 0.85
        case "ring":
            return np.abs(radius - 0.7) - 0.2
        case "square":
            return box(u, v, 0.72, 0.72)
        case "triangle":
            return np.maximum.reduce([u * np.sin(a) + v * np.cos(a) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]) - 0.5
        case "star":
            return 0.8 * (radius - 0.65 - 0.3 * np.cos(5 * np.arctan2(v, u)))
        case "cross":
            return np.minimum(box(u, v, 0.95, 0.27), box(u, v, 0.27, 0.95))
        case "crescent":
            return np.maximum(radius - 0.9, 0.72 - np.hypot(u - 0.42, v))
        case "half disc":
            return np.maximum(np.hypot(u, v + 0.4) - 0.95, -v - 0.4)
        case "bars":
            return box(u, np.abs(v) - 0.5, 0.8, 0.24)
        case "angle":
            return np.minimum(box(u + 0.5, v, 0.25, 0.8), box(u - 0.05, v - 0.55, 0.8, 0.25))


def _cover(distance: np.ndarray) -> np.ndarray:
    """The part of each pixel that is inside, 0 to 1, with smooth edges."""
    return np.clip(0.5 - distance * (SIZE - 1) / 2, 0, 1)


def _contrasting(random: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Colours (n, 3) that differ from the background by 0.4 to 0.8 in Euclidean distance, before clipping."""
    direction = random.normal(size=background.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    direction *= np.where((direction * (0.5 - background)).sum(1, keepdims=True) < 0, -1, 1)  # away from the border
    return background + direction * random.uniform(0.4, 0.8, (len(background), 1))


def _stray_line(random: np.random.Generator, picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One straight line of random colour across each picture."""
    n = len(picture)
    angle, offset = random.uniform(0, np.pi, (n, 1, 1)), random.uniform(-0.9, 0.9, (n, 1, 1))
    cover = 0.7 * _cover(np.abs(x * np.cos(angle) + y * np.sin(angle) - offset) - 0.03)
    colour = random.uniform(0, 1, (n, 3, 1, 1))
    return picture + cover[:, None] * (colour - picture)
