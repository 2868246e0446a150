"""The preprocessing recipe: how an image file becomes the pixels the network was trained on.

Resize, crop and interpolation are done by the preprocessing step (`templates/preprocess/1/model.py`), which gets
them through `parameters` in its config.pbtxt; mean and std are part of the exported graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Edge = Annotated[int, Field(ge=1, le=8192)]
Channel = Annotated[float, Field(ge=-1e3, le=1e3)]
Divisor = Annotated[float, Field(gt=0, le=1e3)]

# Pillow warns from 89 million on; a 50-megapixel RGB frame takes 150 MB in each preprocessing process.
_MAX_PIXELS = 50_000_000
_MAX_BYTES = 32 * 1024 * 1024


class RecipeSpec(BaseModel):
    """What models.yaml may say about preprocessing; what is left out comes from the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: Edge | tuple[Edge, Edge] | None = Field(
        default=None, description="Length in pixels of the shorter edge after resizing, or [height, width]."
    )
    crop: Edge | tuple[Edge, Edge] | None = Field(
        default=None, description="Centre crop in pixels, one number or [height, width]; the network's input size."
    )
    interpolation: Interpolation | None = Field(
        default=None, description="Pillow's filter; all but `nearest` antialias."
    )
    mean: tuple[Channel, Channel, Channel] | None = Field(
        default=None, description="Per channel (RGB), of values scaled to 0..1; subtracted inside the graph."
    )
    std: tuple[Divisor, Divisor, Divisor] | None = Field(
        default=None, description="Per channel (RGB), of values scaled to 0..1; divided by inside the graph."
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

    def apply_to(self, base: Recipe) -> Recipe:
        """Return `base` with every field that is set here replaced."""
        changes: dict[str, Any] = self.model_dump(exclude_none=True)
        return Recipe.model_validate({**base.model_dump(), **changes})


class Recipe(BaseModel):
    """A complete recipe. `crop` is (height, width); `resize` the shorter edge or (height, width), all in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: Edge | tuple[Edge, Edge]
    crop: tuple[Edge, Edge]
    interpolation: Interpolation
    mean: tuple[Channel, Channel, Channel]
    std: tuple[Divisor, Divisor, Divisor]
    exif: Literal["ignore", "apply"] = "ignore"
    max_pixels: int = _MAX_PIXELS
    max_bytes: int = _MAX_BYTES

    @model_validator(mode="before")
    @classmethod
    def _square_crop(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("crop"), int):
            return {**value, "crop": (value["crop"], value["crop"])}
        return value

    @model_validator(mode="after")
    def _crop_fits(self) -> Recipe:
        shortest = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if shortest[0] < self.crop[0] or shortest[1] < self.crop[1]:
            msg = f"crop {list(self.crop)} is larger than resize {self.resize}: the border would have to be invented"
            raise ValueError(msg)
        return self

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

    def parameters(self) -> dict[str, str]:
        """Return what the preprocessing step reads from its config.pbtxt: names and values as text."""
        edges = (self.resize,) if isinstance(self.resize, int) else self.resize
        return {
            "resize": " ".join(str(edge) for edge in edges),
            "crop": f"{self.crop[0]} {self.crop[1]}",
            "interpolation": self.interpolation,
            "exif": self.exif,
            "max_pixels": str(self.max_pixels),
            "max_bytes": str(self.max_bytes),
        }

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `pixels` (N, H, W, 3) as the network's FP32 input (N, 3, H, W): scaled to 0..1, minus mean, by std."""
        import numpy as np

        scaled = pixels.astype(np.float32) / np.float32(255)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))

    def as_scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return three factors and three summands: pixel * factor + summand is what `normalise` makes of a pixel."""
        import numpy as np

        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return 1 / (255 * std), -mean / std


# The recipe of the torchvision reference training scripts.
IMAGENET = Recipe(
    resize=256, crop=(224, 224), interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
