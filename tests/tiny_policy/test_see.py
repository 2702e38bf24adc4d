"""What a visual token is taught to say, by hand; and the tower for teaching against the model's own."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tasks.tvr.data.scene_states import StatePicture
from tasks.tvr.language.scene import ATTRIBUTES, SceneObject
from tiny_policy.see import (
    Heads,
    Pictures,
    augment,
    count_pixels,
    dense_loss,
    gather_pictures,
    mirror,
    name_objects,
    owners,
    to_patches,
    tower_tokens,
)

# Four tokens of 4x4 pixels. Object 0 shows 16 pixels in the first token and 4 in the second; object 1 one pixel there.
MAP = np.full((8, 8), -1, np.int8)
MAP[:4, :5] = 0
MAP[3, 7] = 1
TOKEN_PX = 4
RED = SceneObject(color="red", shape="cube", size="large", material="metal", position=(-1.0, 0.0))
CYAN = SceneObject(color="cyan", shape="sphere", size="small", material="glass", position=(1.0, 0.5))


def made(view: str = "left") -> Pictures:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    state = StatePicture(scene_id=0, state_id=0, view=view, scene=(RED, CYAN), picture=pixels, index_map=MAP)
    return gather_pictures([state], field_of_view=32.0)


def said_by(pictures: Pictures, **values: list[int]) -> dict[str, torch.Tensor]:
    """Heads that are sure of the class given for each of the four tokens, and of class 0 where none is given."""
    width = Heads(4).linear
    said = {}
    for name, head in width.items():
        classes = torch.tensor(values.get(name, [0] * 4))
        said[name] = 20.0 * torch.nn.functional.one_hot(classes, head.out_features).float()[None]
    said["view"] = said["view"][:, 0]
    return said


def test_an_object_owns_the_token_that_shows_most_of_it_however_little():
    counts = count_pixels(made(), TOKEN_PX)
    assert counts[0].tolist() == [[16, 4, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert owners(counts, TOKEN_PX).tolist() == [[1, 2, 0, 0]]  # the second shows more of object 0


def test_a_mirrored_picture_numbers_its_objects_from_the_other_side():
    pictures = made()
    turned = mirror(pictures, torch.tensor([True]))
    assert torch.equal(turned.pixels, pictures.pixels.flip(-1))
    assert (turned.index_maps[0, 3, 0], turned.index_maps[0, 0, 7]) == (0, 1)  # what was object 1, what was object 0
    assert turned.cells[0, :2].tolist() == pictures.cells[0, [1, 0]].tolist()
    assert turned.cells[0, 2:].tolist() == [[-1] * 4] * 2
    assert turned.places[0, 0].tolist() == [-pictures.places[0, 1, 0], pictures.places[0, 1, 1]]
    assert turned.views.tolist() == [2]  # from the left becomes from the right
    same = mirror(pictures, torch.tensor([False]))
    assert all(torch.equal(value, getattr(pictures, name)) for name, value in vars(same).items())


def test_an_augmented_picture_keeps_what_its_pixels_show():
    pixels = np.zeros((48, 48, 3), np.uint8)
    shown = np.full((48, 48), -1, np.int8)
    shown[12:36, 12:36] = 0
    pixels[shown == 0] = 255
    state = StatePicture(scene_id=0, state_id=0, view="center", scene=(RED,), picture=pixels, index_map=shown)
    pictures = gather_pictures([state], 32.0).take([0] * 40)
    for seed in range(3):
        changed = augment(pictures, torch.Generator().manual_seed(seed))
        assert not torch.equal(changed.index_maps, pictures.index_maps)
        wrong = (changed.pixels[:, 0] > 127) != (changed.index_maps == 0)
        assert wrong.float().mean() < 0.01  # pixels on an edge that was turned


def test_every_object_weighs_the_same():
    pictures = made()
    right = {
        name: [int(pictures.cells[0, owner, place]) for owner in (0, 1)] + [0, 0]
        for place, name in enumerate(ATTRIBUTES)
    }
    right["index"] = [1, 2, 0, 0]

    def loss(**wrong: list[int]) -> float:
        said = said_by(pictures, **(right | wrong))
        said["place"] = torch.zeros(1, 4, 2)
        said["view"] = said_by(pictures, view=[1])["view"] if "view" in wrong else said["view"]
        return float(dense_loss(said, pictures, TOKEN_PX))

    color = right["color"]
    base = loss()
    # A sure mistake costs 20 nats; each of the two objects has half of the weight, though one is 20 times as large.
    assert loss(color=[color[0] ^ 1, *color[1:]]) - base == pytest.approx(10.0, abs=0.01)
    assert loss(color=[color[0], color[1] ^ 1, 0, 0]) - base == pytest.approx(10.0, abs=0.01)
    assert loss(shape=[1, right["shape"][1], 0, 0]) - base == pytest.approx(20.0, abs=0.01)  # shapes count twice
    assert loss(color=[*color[:2], 5, 5]) == base  # nobody owns these tokens
    # Half of 20 for an owned token, times 1.5; 0.3 of the mean over two for one that nobody owns, times 1.5.
    assert loss(index=[2, 2, 0, 0]) - base == pytest.approx(15.0, abs=0.01)
    assert loss(index=[1, 2, 1, 0]) - base == pytest.approx(4.5, abs=0.01)


def test_an_object_is_named_by_its_pixels():
    pictures = made()
    # Object 0: 16 pixels say class 2, 4 say class 1. Object 1 has one pixel, in the second token.
    names = name_objects(said_by(pictures, color=[2, 1, 0, 0], index=[1, 2, 0, 0]), pictures, TOKEN_PX)
    assert names["color"].tolist() == [[2, 1, -1, -1]]
    assert names["index"].tolist() == [[0, 1, -1, -1]]


def test_the_tower_for_teaching_is_the_models_own(policy_folder):
    model = AutoModelForImageTextToText.from_pretrained(policy_folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(policy_folder).image_processor
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 3, 96, 144), np.uint8))
    encoded = processor(images=list(pixels), return_tensors="pt")
    patches = to_patches(pixels.float(), processor)
    frame = encoded["pixel_values"].view(3, -1, 3, 2, processor.patch_size**2)[:, :, :, 0]
    torch.testing.assert_close(patches, frame.flatten(2), atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = model.model.visual(encoded["pixel_values"], grid_thw=encoded["image_grid_thw"]).pooler_output
        found = tower_tokens(model.model.visual, patches, (8, 12))
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-5, rtol=0)
