"""The preprocessing recipe: how an image file becomes the pixels the network was trained on, and these its input.

Resize, crop, padding and the conversion to grey are done by the preprocessing step
(`templates/preprocess/1/model.py`), which gets them through `parameters` in its config.pbtxt; the order of the
channels, scale, mean and std are part of the exported graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _read_fraction(value: Any) -> Any:
    """Return the number of a text such as 1/127.5, and anything else as it is."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "linear"]
Fit = Literal["crop", "stretch", "letterbox", "letterbox-corner"]
Channels = Literal["RGB", "BGR", "grey"]
Edge = Annotated[int, Field(ge=1, le=8192)]
Level = Annotated[int, Field(ge=0, le=255)]
Channel = Annotated[float, Field(ge=-1e3, le=1e3)]
Divisor = Annotated[float, Field(gt=0, le=1e3)]
Scale = Annotated[float, BeforeValidator(_read_fraction), Field(ge=1e-3, le=1e3)]
PerChannel = tuple[Channel, Channel, Channel] | tuple[Channel]
DivisorPerChannel = tuple[Divisor, Divisor, Divisor] | tuple[Divisor]

# What the preprocessing step reads of a recipe.
PARAMETERS = (
    "resize",
    "crop",
    "interpolation",
    "exif",
    "fit",
    "fill",
    "rounding",
    "channels",
    "max_pixels",
    "max_bytes",
)

# Pillow warns from 89 million on; a 50-megapixel RGB frame takes 150 MB in each preprocessing process.
_MAX_PIXELS = 50_000_000
_MAX_BYTES = 32 * 1024 * 1024


class RecipeSpec(BaseModel):
    """What models.yaml may say about preprocessing; what is left out comes from `base`, else from the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Literal["imagenet", "inception", "clip", "keras-caffe", "keras-tf", "yolo"] | None = Field(
        default=None, description="A recipe by its name, see [recipes](recipes.md); the other fields change it."
    )
    fit: Fit | None = Field(
        default=None,
        description="How the image gets the network's size: `crop` resizes the shorter edge, `stretch` both edges; "
        "`letterbox` keeps all of the image and fills the rest, on both sides or (`letterbox-corner`) right and below.",
    )
    resize: Edge | tuple[Edge, Edge] | None = Field(
        default=None,
        description="Length in pixels of the shorter edge after resizing, or [height, width], into which the image is "
        "stretched or fitted; default there: the crop's.",
    )
    crop: Edge | tuple[Edge, Edge] | None = Field(
        default=None, description="Centre crop in pixels, one number or [height, width]; the network's input size."
    )
    crop_pct: Annotated[float, Field(gt=0.1, le=1)] | None = Field(
        default=None, description="The crop's share of the resized image, in place of `resize`: crop / crop_pct, down."
    )
    rounding: Literal["round", "floor"] | None = Field(
        default=None,
        description="How half a pixel at the crop's corner is rounded: `round` to even as torchvision and timm do, "
        "`floor` as transformers does.",
    )
    interpolation: Interpolation | None = Field(
        default=None,
        description="Pillow's filter; all but `nearest` antialias. `linear` is bilinear without antialiasing, as "
        "OpenCV and torch resize.",
    )
    fill: tuple[Level, Level, Level] | None = Field(
        default=None, description="What a letterbox is filled with: red, green and blue, 0 to 255."
    )
    channels: Channels | None = Field(
        default=None,
        description="The order of the network's channels, or one `grey` channel. PIXELS are RGB or grey; the graph "
        "turns them to BGR.",
    )
    scale: Scale | None = Field(
        default=None, description="What a level of 0..255 is multiplied by before mean and std; 1/255, 1/127.5, 1."
    )
    mean: PerChannel | Channel | None = Field(
        default=None,
        description="Of scaled values, one for all channels or one each in the order of `channels`; subtracted in the "
        "graph.",
    )
    std: DivisorPerChannel | Divisor | None = Field(
        default=None,
        description="Of scaled values, one for all channels or one each in the order of `channels`; divided by in the "
        "graph.",
    )
    exif: Literal["ignore", "apply"] | None = Field(
        default=None,
        description="Whether to rotate as the EXIF orientation says; training pipelines ignore it, the default too.",
    )
    max_pixels: Annotated[int, Field(ge=500_000, le=1_000_000_000)] | None = Field(
        default=None,
        description="Images with more pixels are refused before they are decoded; the gate's own have up to 410,000.",
    )
    max_bytes: Annotated[int, Field(ge=250_000, le=2_000_000_000)] | None = Field(
        default=None, description="Image files with more bytes are refused; the gate's own have up to 200,000."
    )

    def apply_to(self, own: Recipe | None) -> Recipe:
        """Return the source's own recipe, or `base` where that is given, with every field that is set here replaced.

        Raises:
            ValueError: Together they are not a valid recipe.
            LookupError: There is neither, and fields are missing; its arguments are their names.
        """
        known = own if self.base is None else RECIPES[self.base]
        fields = known.model_dump() if known else {}
        changes: dict[str, Any] = self.model_dump(exclude_none=True, exclude={"base", "crop_pct"})
        fields |= changes
        if self.crop_pct is not None and "resize" in changes:
            msg = "crop_pct and resize state the same: leave one of them out"
            raise ValueError(msg)
        if "crop" in fields and "resize" not in changes:
            crop = (fields["crop"],) if isinstance(fields["crop"], int) else fields["crop"]
            if self.crop_pct is not None:
                resized = [math.floor(edge / self.crop_pct) for edge in crop]
                fields["resize"] = max(resized) if fields.get("fit", "crop") == "crop" else (resized[0], resized[-1])
            elif fields.get("fit", "crop") != "crop" and changes.keys() & {"fit", "crop"}:
                fields["resize"] = (crop[0], crop[-1])
            elif changes.get("fit") == "crop" and not isinstance(fields.get("resize"), int):
                fields["resize"] = max(crop)
        if missing := [name for name in ("resize", "crop", "interpolation", "mean", "std") if name not in fields]:
            raise LookupError(*missing)
        return Recipe.model_validate(fields)


class Recipe(BaseModel):
    """A complete recipe. `crop` is (height, width); `resize` the shorter edge or (height, width), all in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fit: Fit = "crop"
    resize: Edge | tuple[Edge, Edge]
    crop: tuple[Edge, Edge]
    rounding: Literal["round", "floor"] = "round"
    interpolation: Interpolation
    fill: tuple[Level, Level, Level] = (0, 0, 0)
    channels: Channels = "RGB"
    scale: Scale = 1 / 255
    mean: PerChannel
    std: DivisorPerChannel
    exif: Literal["ignore", "apply"] = "ignore"
    max_pixels: int = _MAX_PIXELS
    max_bytes: int = _MAX_BYTES

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """Repeat what is given once for both edges or all channels; a pair to `resize` to is what `stretch` means."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        pairs = ("crop",) if value.get("fit", "crop") == "crop" else ("crop", "resize")
        for name in pairs:
            if isinstance(value.get(name), int):
                value[name] = (value[name], value[name])
        for name in ("mean", "std"):
            if isinstance(value.get(name), (int, float)):
                value[name] = (value[name],) * (1 if value.get("channels") == "grey" else 3)
        if value.get("fit", "crop") == "crop" and isinstance(value.get("resize"), (list, tuple)):
            value["fit"] = "stretch"
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        shortest = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if shortest[0] < self.crop[0] or shortest[1] < self.crop[1]:
            msg = f"crop {list(self.crop)} is larger than resize {self.resize}: the border would have to be invented"
            raise ValueError(msg)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[2]:
                msg = f"{name} has {len(values)} values, but channels is {self.channels}: {self.shape[2]} was expected"
                raise ValueError(msg)
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pixels."""
        return (*self.crop, 1 if self.channels == "grey" else 3)

    def with_image_size(self, size: tuple[int, int]) -> Recipe:
        """Return the recipe for another input size (height, width), with resize in the same proportion to it."""

        def scaled(edge: int, index: int) -> int:
            return max(round(edge * size[index] / self.crop[index]), size[index])

        resize: int | tuple[int, int]
        if isinstance(self.resize, int):
            resize = max(scaled(self.resize, 0), scaled(self.resize, 1))
        else:
            resize = (scaled(self.resize[0], 0), scaled(self.resize[1], 1))
        return self.model_copy(update={"crop": size, "resize": resize})

    def pixel_fields(self) -> dict[str, Any]:
        """Return what decides the pixels that are made of an image, as JSON; what is rarely used only where it is."""
        fields = self.model_dump(mode="json", include={"resize", "crop", "interpolation", "exif"})
        if self.fit.startswith("letterbox"):
            fields |= {"fit": self.fit, "fill": list(self.fill)}
        fields |= {"rounding": self.rounding} if self.rounding == "floor" else {}
        return fields | ({"channels": self.channels} if self.channels == "grey" else {})

    def parameters(self) -> dict[str, str]:
        """Return what the preprocessing step reads from its config.pbtxt: names and values as text."""
        values = {**self.pixel_fields(), "max_pixels": self.max_pixels, "max_bytes": self.max_bytes}
        return {
            name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in values.items()
        }

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `pixels` (N, H, W, C) as the network's FP32 input (N, C, H, W): scaled, minus mean, by std."""
        import numpy as np

        ordered = pixels[..., ::-1] if self.channels == "BGR" else pixels
        scaled = ordered.astype(np.float32) / np.float32(1 / self.scale)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))

    def as_scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return factors and summands per channel: pixel * factor + summand is what `normalise` makes of a pixel."""
        import numpy as np

        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return 1 / (np.float32(1 / self.scale) * std), -mean / std


def _recipe(resize: int | tuple[int, int], crop: int, interpolation: Interpolation, **more: Any) -> Recipe:
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    fields = {"resize": resize, "crop": (crop, crop), "interpolation": interpolation, **half, **more}
    return Recipe.model_validate(fields)


# The recipe of the torchvision reference training scripts.
IMAGENET = _recipe(256, 224, "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_KERAS = {"fit": "stretch", "std": (1.0, 1.0, 1.0)}
RECIPES = {
    "imagenet": IMAGENET,
    # timm's for the weights of TF-slim
    "inception": _recipe(341, 299, "bicubic"),
    # OpenAI's ViT-B/32
    "clip": _recipe(
        224, 224, "bicubic", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    ),
    # keras.utils.load_img with target_size, and preprocess_input of ResNet and VGG
    "keras-caffe": _recipe(
        (224, 224), 224, "nearest", **_KERAS, channels="BGR", scale=1.0, mean=(103.939, 116.779, 123.68)
    ),
    # the same with preprocess_input of MobileNet, Inception and Xception: -1..1
    "keras-tf": _recipe((224, 224), 224, "nearest", **_KERAS, scale=1 / 127.5, mean=(1.0, 1.0, 1.0)),
    # the exporters of YOLOv5 and its successors
    "yolo": _recipe((640, 640), 640, "linear", **_PLAIN, fit="letterbox", fill=(114, 114, 114)),
}
