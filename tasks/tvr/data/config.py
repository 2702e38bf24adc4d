"""Settings of the data set."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from tasks.tvr.language.scene import ATTRIBUTES, MAX_OBJECTS
from tasks.tvr.pictures.render import FIELD_OF_VIEW_DEG, RENDERER

Setting = Literal["basic", "event", "view"]


class DataConfig(BaseModel):
    """Where the picture pairs are, and how to render them where they are missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="Folder of the data set with its splits train and test; rendered if it is missing.")
    settings: tuple[Setting, ...] = Field(
        default=("basic", "event", "view"),
        min_length=1,
        description="Settings to render, equally common: basic (1 change), event (some), view (some, other camera).",
    )
    train: PositiveInt = Field(default=2000, description="Training pairs to render; more overfit later.")
    test: PositiveInt = Field(default=200, description="Held-out pairs to render; more make the metrics less noisy.")
    objects: tuple[PositiveInt, PositiveInt] = Field(
        default=(2, 3), description="Fewest and most objects of a scene, equally likely; more are harder."
    )
    changes: tuple[PositiveInt, PositiveInt] = Field(
        default=(1, 2), description="Fewest and most changes (event and view), equally likely; more are harder."
    )
    size: tuple[PositiveInt, PositiveInt] = Field(
        default=(160, 120), description="Width and height in pixels; larger shows more and costs more visual tokens."
    )
    spp: PositiveInt = Field(default=16, description="Rendered samples per pixel; more are slower and less noisy.")
    field_of_view: float = Field(
        default=FIELD_OF_VIEW_DEG,
        gt=5,
        lt=90,
        description="Horizontal, of the cameras, in degrees; the default is CLEVR's, smaller shows objects larger.",
    )
    seed: int = Field(default=0, description="Seed of scenes, changes and noise; equal seeds give equal pictures.")
    workers: int = Field(
        default=0, ge=0, description="Rendering processes, 0 for one per core; the pictures do not depend on it."
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name, (low, high) in (("objects", self.objects), ("changes", self.changes)):
            if low > high:
                raise ValueError(f"{name} is {low} to {high}; the first number must not be larger than the second")
        if self.objects[1] > MAX_OBJECTS:
            raise ValueError(f"objects goes up to {self.objects[1]}; a scene holds {MAX_OBJECTS} at most")
        if self.changes[1] > (cells := self.objects[0] * len(ATTRIBUTES)):
            raise ValueError(
                f"{self.changes[1]} changes do not fit in {self.objects[0]} objects; ask for at most {cells}"
            )
        if len(set(self.settings)) != len(self.settings):
            raise ValueError(f"settings are {', '.join(self.settings)}; name each once")
        return self

    def recipe(self) -> dict[str, Any]:
        """What decides the pictures, as JSON: everything but the place and the number of processes."""
        return {**self.model_dump(mode="json", exclude={"path", "workers"}), "renderer": RENDERER}
