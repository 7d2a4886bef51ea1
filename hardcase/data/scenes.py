"""Draw procedural scenes: samples like a user's, whose flaws are known.

The original shows a product alone on a studio background. Four candidates show it placed in a generated scene, as in
the paper's use (arXiv 2511.10055, figure 1). Each aspect has several kinds of flaw of continuous size, with a long tail
of rare hard ones. A changed or missing band, another width and an extra arm are visible only by comparison with the
original. Candidates also carry flaws of aspects that are not asked for.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

from hardcase.progress import track
from hardcase.task.sample import ASPECTS, LETTERS

SIZE: Final = 96
OVERSAMPLING: Final = 2
BODIES: Final = ((200, 60, 50), (60, 110, 200), (70, 160, 80), (214, 160, 50), (150, 80, 180))
BANDS: Final = {"white": (246, 246, 246), "black": (26, 26, 26)}
SIDES: Final = ("left", "right")
# Kinds of flaw by aspect: the common ones, then the rare ones of the long tail.
KINDS: Final = {
    "appearance_deformation": (("skewed", "rebanded"), ("bandless", "widened")),
    "physical_shadow": (("reversed", "shadowless"), ("detached",)),
    "placement_layout": (("floating", "cropped"), ("sunken",)),
    "extension_rationality": (("arm",), ("spout",)),
}
TAIL_SHARE: Final = 0.12
# Annotation is expensive, so annotators explain what is obvious and quick to write: scenes no harder than CLEAR, in
# these shares by the number of flawed candidates. A model fine-tuned on those expects too few flaws, which
# reinforcement on all samples corrects.
CLEAR: Final = 0.55
EXPLAINED: Final = (1.0, 0.9, 0.45, 0.15, 0.0)
# These flaws hide what another aspect asks about, so they occur only in their own aspect's scenes.
OCCLUDING: Final = frozenset({"cropped", "sunken"})
# The vocabulary of observations.
VOCABULARY: Final = (
    *(["white", "black", "none", "straight", "skewed", "widened", "left", "right", "detached"]),
    *(["standing", "floating", "cropped", "sunken", "both", "spout", "same", "other"]),
)
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Product:
    """Hold a product; lengths are shares of the image's side."""

    body: Colour
    band: str
    band_at: float
    width: float
    height: float
    cap: bool
    arm: str


@dataclass(frozen=True, slots=True)
class View:
    """Hold how an image shows its product: what is visible, and the size of each flaw (0 = none)."""

    light: str = "none"
    shadow: str = "none"
    skew: float = 0.0
    widen: float = 1.0
    band: str = "none"
    band_mix: float = 1.0
    arm: str = "none"
    arm_length: float = 0.2
    spout: float = 0.0
    lift: float = 0.0
    shadow_gap: float = 0.0
    shadow_length: float = 0.8
    x: float = 0.5
    flaws: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold a drawn sample: five images, what each shows, and the aspect asked for."""

    product: Product
    aspect: str
    views: tuple[View, ...]
    images: tuple[Image.Image, ...]
    hardness: float

    @property
    def truth(self) -> list[str]:
        """Return the letters of the candidates that show a flaw in the aspect asked for."""
        return [letter for letter, view in zip(LETTERS, self.views[1:], strict=True) if self.aspect in view.flaws]

    @property
    def reasoning(self) -> str:
        """Return the chain of thought: the observation on each candidate with its verdict."""
        return self._format_notes(" bad", " ok")

    @property
    def reading(self) -> str:
        """Return the observations of the chain of thought without verdicts."""
        return self._format_notes("", "")

    def _format_notes(self, bad: str, ok: str) -> str:
        notes = [f"original {describe_view(self.views[0], self.aspect)}"] if self.aspect in AGAINST_ORIGINAL else []
        for letter, view in zip(LETTERS, self.views[1:], strict=True):
            verdict = bad if self.aspect in view.flaws else ok
            notes.append(f"{letter} {_compare_view(view, self.views[0], self.aspect)}{verdict}")
        return " ".join(notes)


# Bands and arms differ by product, so a flaw in them shows only against the original.
AGAINST_ORIGINAL: Final = frozenset({"appearance_deformation", "extension_rationality"})


def describe_view(view: View, aspect: str) -> str:
    """Return the observation on one image for `aspect`, in words of `VOCABULARY`."""
    if aspect == "appearance_deformation":
        shape = view.flaws.get(aspect, "")
        return f"{view.band} {shape if shape in ('skewed', 'widened') else 'straight'}"
    if aspect == "physical_shadow":
        return f"{view.light} {'detached' if view.shadow_gap else view.shadow}"
    if aspect == "placement_layout":
        return view.flaws.get(aspect, "standing")
    return "spout" if view.spout else view.arm


def _compare_view(view: View, original: View, aspect: str) -> str:
    """Return the observation on a candidate and, where the aspect compares two things, whether they agree."""
    agreeing = {
        "appearance_deformation": view.band == original.band,
        "physical_shadow": view.shadow == view.light,
        "extension_rationality": view.arm == original.arm and not view.spout,
    }
    observation = describe_view(view, aspect)
    return f"{observation} {'same' if agreeing[aspect] else 'other'}" if aspect in agreeing else observation


def describe_all_aspects(view: View) -> str:
    """Return the observations on one image in every aspect, for the perception warm-up."""
    return " ".join(describe_view(view, aspect) for aspect in ASPECTS)


def _draw_product(rng: random.Random) -> Product:
    return Product(
        body=rng.choice(BODIES),
        band=rng.choice(list(BANDS)),
        band_at=rng.uniform(0.35, 0.65),
        width=rng.uniform(0.20, 0.27),
        height=rng.uniform(0.32, 0.42),
        cap=rng.random() < 0.5,
        arm=rng.choice(("none", *SIDES)),
    )


def _add_flaw(view: View, product: Product, kind: str, size: float, rng: random.Random) -> View:
    """Return `view` with one flaw of `kind`, whose `size` is 1 if obvious and 0.3 if hardly visible."""
    change: dict[str, Callable[[], dict[str, Any]]] = {
        "skewed": lambda: {"skew": rng.choice((-1, 1)) * 0.85 * size},
        "rebanded": lambda: {"band": "black" if product.band == "white" else "white", "band_mix": 0.5 + 0.5 * size},
        "bandless": lambda: {"band": "none"},
        "widened": lambda: {"widen": 1 + 0.7 * size},
        "reversed": lambda: {"shadow": view.light, "shadow_length": 0.35 + 0.6 * size},
        "shadowless": lambda: {"shadow": "none"},
        "detached": lambda: {"shadow_gap": 0.05 + 0.13 * size},
        "floating": lambda: {"lift": 0.05 + 0.2 * size},
        "sunken": lambda: {"lift": -(0.08 + 0.12 * size)},
        "cropped": lambda: {"x": 0.5 + rng.choice((-1, 1)) * (0.36 + 0.10 * size)},
        "arm": lambda: {
            "arm": rng.choice(SIDES) if product.arm == "none" else "both",
            "arm_length": 0.11 + 0.13 * size,
        },
        "spout": lambda: {"spout": 0.08 + 0.14 * size},
    }
    return replace(view, **change[kind]())


def _draw(product: Product, view: View, wall: Colour, floor: Colour | None, horizon: float) -> Image.Image:
    """Draw one image; without a `floor` the product stands alone on a studio background."""
    n = SIZE * OVERSAMPLING
    image = Image.new("RGB", (n, n), wall)
    draw = ImageDraw.Draw(image)
    ground = (horizon + 0.10) * n
    width, height = product.width * n * view.widen, product.height * n
    centre, bottom = view.x * n, ground - view.lift * n
    top = bottom - height
    if floor is not None:
        draw.rectangle((0, horizon * n, n, n), fill=floor)
        draw.circle(((0.13 if view.light == "left" else 0.87) * n, 0.13 * n), 0.075 * n, fill=(255, 250, 190))
        _draw_shadow(draw, product, view, floor, ground)

    def locate(u: float, v: float) -> tuple[float, float]:
        """Convert body coordinates (0, 0 top left to 1, 1 bottom right) to pixels, sheared about the foot."""
        return centre + (u - 0.5) * width + (1 - v) * view.skew * height, top + v * height

    dark = _darken(product.body, 0.62)
    for side in SIDES:
        if view.arm in (side, "both"):
            # The product's own arm has its own length, an extra arm the length of the flaw.
            length = (0.2 if side == product.arm else view.arm_length) * n
            way = -1 if side == "left" else 1
            x, y = locate(0.05 if side == "left" else 0.95, 0.5)
            elbow = (x + way * 0.75 * length, y)
            draw.line(((x, y), elbow, (elbow[0], y - 0.7 * length)), fill=dark, width=int(0.075 * n), joint="curve")
    if view.spout:
        x, y = locate(0.5, 0)
        draw.line(((x, y), (x, y - view.spout * n)), fill=product.body, width=int(0.07 * n))
    draw.polygon((locate(0, 0), locate(1, 0), locate(1, 1), locate(0, 1)), fill=product.body)
    if view.light != "none":
        a, b = (0.82, 1.0) if view.light == "left" else (0.0, 0.18)
        draw.polygon((locate(a, 0), locate(b, 0), locate(b, 1), locate(a, 1)), fill=dark)
    if view.band != "none":
        share, colours = view.band_mix, zip(BANDS[view.band], BANDS[product.band], strict=True)
        mixed = tuple(int(share * new + (1 - share) * old) for new, old in colours)
        a, b = product.band_at - 0.13, product.band_at + 0.13
        draw.polygon((locate(0, a), locate(1, a), locate(1, b), locate(0, b)), fill=mixed)
    if product.cap:
        draw.polygon((locate(0.3, -0.14), locate(0.7, -0.14), locate(0.7, 0), locate(0.3, 0)), fill=dark)
    if view.lift < 0 and floor is not None:
        draw.rectangle((0, ground, n, n), fill=floor)
        _draw_shadow(draw, product, view, floor, ground)
    return image.reduce(OVERSAMPLING)


def _draw_shadow(draw: ImageDraw.ImageDraw, product: Product, view: View, floor: Colour, ground: float) -> None:
    if view.shadow == "none":
        return
    n = SIZE * OVERSAMPLING
    way = -1 if view.shadow == "left" else 1
    reach, slope, gap = way * 0.30 * n * view.shadow_length, 0.13 * n, way * view.shadow_gap * n
    half, foot = product.width * n * view.widen / 2, view.x * n + gap
    near, far = ((foot - half, ground), (foot + half, ground)), ground + slope
    draw.polygon((*near, (foot + half + reach, far), (foot - half + reach, far)), fill=_darken(floor, 0.42))


def _darken(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(channel * factor) for channel in colour)
    return red, green, blue


def _pick_colour(rng: random.Random, low: int, high: int) -> Colour:
    base = rng.randint(low, high)
    return base, base + rng.randint(-12, 12), base + rng.randint(-12, 12)


def draw_scene(
    rng: random.Random,
    aspect: str | None = None,
    product: Product | None = None,
    flawed: float = 0.45,
    distracting: float = 0.2,
    tail: bool | None = None,
    ceiling: float = 0.7,
) -> Scene:
    """Draw one sample, of a random aspect and a new product unless they are given.

    A candidate is flawed in the aspect asked for with probability `flawed`, in each other one with `distracting`. A
    rare hard case (`tail`) is drawn with probability `TAIL_SHARE` unless it is given; the hardness of others ends at
    `ceiling`.
    """
    aspect = aspect or rng.choice(ASPECTS)
    product = product or _draw_product(rng)
    tail = rng.random() < TAIL_SHARE if tail is None else tail
    hardness = rng.uniform(0.8, 1.0) if tail else rng.random() * ceiling
    views = [View(band=product.band, arm=product.arm)]
    images = [_draw(product, views[0], _pick_colour(rng, 226, 240), None, 0.62)]
    for _ in LETTERS:
        light = rng.choice(SIDES)
        view = View(
            light=light,
            shadow="left" if light == "right" else "right",
            band=product.band,
            arm=product.arm,
            x=rng.uniform(0.42, 0.58),
            shadow_length=rng.uniform(0.6, 1.0),
        )
        flaws = {}
        for flaw_aspect in ASPECTS:
            if rng.random() >= (flawed if flaw_aspect == aspect else distracting):
                continue
            rare = tail and rng.random() < 0.6
            kind = rng.choice(KINDS[flaw_aspect][rare])
            if flaw_aspect != aspect and kind in OCCLUDING:
                continue
            size = (1 - 0.7 * hardness if not rare else rng.uniform(0.4, 1.0)) * rng.uniform(0.9, 1.1)
            view = _add_flaw(view, product, kind, min(size, 1.0), rng)
            flaws[flaw_aspect] = kind
        views.append(replace(view, flaws=flaws))
        images.append(
            _draw(product, views[-1], _pick_colour(rng, 150, 215), _pick_colour(rng, 95, 140), rng.uniform(0.56, 0.64))
        )
    return Scene(product, aspect, tuple(views), tuple(images), hardness)


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """Return an image as the bytes of a JPEG or PNG file."""
    buffer = BytesIO()
    # Each format ignores the other's option.
    image.save(buffer, "JPEG" if suffix == ".jpg" else "PNG", quality=92, compress_level=1)
    return buffer.getvalue()


def write_source(folder: Path, samples: int, seed: int, views_a_product: int = 1) -> None:
    """Write a source in a user's format into a new folder: images and, last, `manifest.jsonl`.

    Each `views_a_product` rows show the same product and form a group.
    """
    rng = random.Random(f"scenes {seed}")
    folder.mkdir(parents=True)
    rows = []
    product = _draw_product(rng)
    for index in track(range(samples), "drawing scenes", samples):
        if index % views_a_product == 0:
            product = _draw_product(rng)
        scene = draw_scene(rng, product=product)
        subfolder = folder / "pictures" / f"{index // 500:03d}"
        subfolder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, image in zip(("original", *LETTERS), scene.images, strict=True):
            suffix = ".png" if name == "original" else ".jpg"
            path = subfolder / f"{index:06d}-{name}{suffix}"
            path.write_bytes(encode_image(image, suffix))
            paths.append(path.relative_to(folder).as_posix())
        row = {
            "id": f"scene-{seed}-{index:06d}",
            "aspect": scene.aspect,
            "original": paths[0],
            "candidates": paths[1:],
            "answer": scene.truth,
            "group": f"product-{seed}-{index // views_a_product:06d}",
        }
        if rng.random() < EXPLAINED[len(scene.truth)] and scene.hardness <= CLEAR:
            row["reasoning"] = scene.reasoning
        rows.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
