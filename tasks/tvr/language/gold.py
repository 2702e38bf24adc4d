"""The truth of a picture pair."""

from dataclasses import dataclass

from tasks.tvr.language.scene import SETTINGS, VIEWS, Scene, Transformation, check_possible, net_changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Gold:
    """What a scorer needs to know and the policy must not: the initial scene and the true changes.

    *view* is the camera of the final picture. *transformations* are those that made the final scene, in order;
    *changes* are what can be seen of them.
    """

    setting: str
    scene: Scene
    transformations: tuple[Transformation, ...]
    view: str = "center"

    def __post_init__(self) -> None:
        for name, value, known in (("setting", self.setting, SETTINGS), ("view", self.view, VIEWS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")

    def check(self) -> None:
        """Raises ValueError unless the changes are possible, and one in a basic sample."""
        for change in self.transformations:
            check_possible(change, self.scene)
        self.check_count()

    def check_count(self) -> None:
        """Raises ValueError for a basic sample without exactly one change."""
        truth = self.transformations
        if self.setting == "basic" and len(truth) != 1:
            raise ValueError(f"a basic sample has one change, this one has {len(truth)}: {', '.join(map(str, truth))}")

    @property
    def changes(self) -> tuple[Transformation, ...]:
        return net_changes(self.scene, self.transformations)
