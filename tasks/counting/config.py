"""Settings of the counting pictures."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from tasks.tvr.pictures.render import RENDERER


class CountingConfig(BaseModel):
    """Where the pictures are, and how to render them where they are missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="Folder of the data set with its splits train and test; rendered if it is missing.")
    train: PositiveInt = Field(default=480, description="Training pictures to render; more overfit later.")
    test: PositiveInt = Field(default=200, description="Held-out pictures to render; more make accuracy less noisy.")
    objects: tuple[PositiveInt, PositiveInt] = Field(
        default=(2, 3), description="Fewest and most objects of a scene, each number equally likely; more are harder."
    )
    size: tuple[PositiveInt, PositiveInt] = Field(default=(192, 144), description="Width and height in pixels.")
    spp: PositiveInt = Field(default=6, description="Rendered samples per pixel; more are slower and less noisy.")
    field_of_view: float = Field(default=32.0, gt=5, lt=90, description="Of the camera, horizontal, in degrees.")
    seed: int = Field(default=0, description="Seed of scenes, questions and noise; equal seeds give equal pictures.")
    workers: int = Field(
        default=0, ge=0, description="Rendering processes, 0 for one per core; the pictures do not depend on it."
    )

    def recipe(self) -> dict[str, Any]:
        """What decides the pictures, as JSON."""
        return {**self.model_dump(mode="json", exclude={"path", "workers"}), "renderer": RENDERER}
