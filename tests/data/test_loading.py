"""Reading and augmenting images: what changes them, and what must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_clip
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandAugment

from rmadapter.data import (
    EpochBatches,
    EvalImages,
    ImageData,
    Item,
    Preprocessing,
    TrainImages,
    check_images,
    collate_readable,
    eval_transform,
    read_image,
    train_transform,
)
from rmadapter.data.loading import drawn_number
from rmadapter.errors import InputError

PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


ITEMS = [Item(f"{number}.png", number % 3, "name") for number in range(7)]


def reader(root):
    return ImageData("images", root, ITEMS, [], [], None).read


def load(root, epoch=0, workers=0, start=0, seed=5, augmentation="crop_flip"):
    images = TrainImages(reader(root), ITEMS, train_transform(PREPROCESSING, augmentation), seed)
    batches = EpochBatches(len(images), 3, seed, epoch, start)
    return list(DataLoader(images, batch_sampler=batches, num_workers=workers))


def test_neither_workers_nor_the_point_of_resumption_change_an_image(root):
    plain = load(root)
    assert [len(labels) for _, labels in plain] == [3, 3, 1]
    for other in (load(root, workers=2), load(root, start=1)):
        for (images, labels), (again, same) in zip(plain[-len(other) :], other, strict=True):
            assert torch.equal(images, again)
            assert torch.equal(labels, same)


def test_epochs_and_seeds_change_order_and_augmentation(root):
    images = TrainImages(reader(root), ITEMS, train_transform(PREPROCESSING), 5)
    assert torch.equal(images[0, 2][0], images[0, 2][0])
    assert not torch.equal(images[0, 2][0], images[1, 2][0])
    assert not torch.equal(
        images[0, 2][0], TrainImages(reader(root), ITEMS, train_transform(PREPROCESSING), 6)[0, 2][0]
    )

    def order(seed, epoch):
        return [key for batch in EpochBatches(50, 8, seed, epoch) for key in batch]

    assert sorted(index for _, index in order(1, 0)) == list(range(50))
    assert {epoch for epoch, _ in order(1, 3)} == {3}
    orders = {tuple(index for _, index in order(*key)) for key in ((1, 0), (1, 1), (2, 0))}
    assert len(orders) == 3
    assert len(EpochBatches(50, 8, 1, 0)) == 7
    assert len(EpochBatches(50, 8, 1, 0, start=5)) == len(list(EpochBatches(50, 8, 1, 0, start=5))) == 2


def test_the_global_generator_is_left_alone(root):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    load(root)
    # The loader itself draws one number for its workers' seeds.
    torch.set_rng_state(state)
    TrainImages(reader(root), ITEMS, train_transform(PREPROCESSING), 5)[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentations(root):
    image = read_image(root / "0.png")
    none = train_transform(PREPROCESSING, "none")(image)
    assert torch.equal(none, eval_transform(PREPROCESSING)(image))
    assert none.shape == (3, 16, 16)
    torch.manual_seed(0)
    crops = [train_transform(PREPROCESSING, "crop", min_crop=1.0)(image) for _ in range(20)]
    flips = [train_transform(PREPROCESSING, "crop_flip", min_crop=1.0)(image) for _ in range(20)]

    def mirrored(images):
        return any(torch.allclose(a, b.flip(-1), atol=1e-5) for a in images for b in images)

    assert not mirrored(crops)
    assert mirrored(flips)
    with pytest.raises(InputError, match="augmentation is 'flip'"):
        train_transform(PREPROCESSING, "flip")


def test_a_second_view_is_drawn_for_itself_and_leaves_the_first_as_it_is(root):
    def of(*arguments):
        return TrainImages(reader(root), ITEMS, train_transform(PREPROCESSING, "randaugment"), *arguments)

    alone, both = of(5), of(5, True)
    for key in ((0, 2), (1, 2), (1, 3)):
        (views, label), (view, same) = both[key], alone[key]
        assert views.shape == (2, 3, 16, 16)
        assert label == same
        assert torch.equal(views[0], view)
        assert torch.equal(both[key][0], views)
    every = torch.stack([both[epoch, index][0] for epoch in range(4) for index in range(7)])
    assert sum(not torch.equal(*views) for views in every) > 20
    assert len({tuple(view.flatten().tolist()) for view in every[:, 1]}) > 20
    seconds = [both[epoch, 2][0][1] for epoch in range(4)]
    assert not all(torch.equal(second, seconds[0]) for second in seconds)
    assert not torch.equal(of(6, True)[1, 2][0][1], both[1, 2][0][1])


def test_randaugment_squeezes_the_whole_image_and_applies_two_operations(root, monkeypatch):
    """Without the operations it is Pillow's resizing of 30 x 20 pixels to a square, normalised."""
    found = []
    forward = RandAugment.forward
    monkeypatch.setattr(
        RandAugment, "forward", lambda self, image: (found.append((self, image)), forward(self, image))[1]
    )
    image = read_image(root / "0.png")
    torch.manual_seed(0)
    every = torch.stack([train_transform(PREPROCESSING, "randaugment")(image) for _ in range(8)])
    assert len(every.unique(dim=0)) > 4
    (operations, squeezed), *_ = found
    assert (operations.num_ops, operations.magnitude, operations.num_magnitude_bins) == (2, 10, 31)
    assert squeezed.tobytes() == image.resize((16, 16), Image.Resampling.BICUBIC).tobytes()
    monkeypatch.setattr(RandAugment, "forward", lambda self, image: image)
    plain = train_transform(PREPROCESSING, "randaugment")(image)
    pixels = torch.from_numpy(np.asarray(squeezed).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(plain, (pixels - 0.5) / 0.25)


def test_one_number_is_drawn_for_each_step():
    numbers = [[drawn_number(seed, epoch, step, 5) for step in range(200)] for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(set(row) == set(range(5)) for row in numbers)
    assert all(20 <= row.count(number) <= 60 for row in numbers for number in range(5))
    assert len({tuple(row) for row in numbers}) == 3
    assert numbers[1] == [drawn_number(1, 1, step, 5) for step in range(200)]


def test_preprocessing_of_a_model():
    clip = small_clip()
    assert Preprocessing.of(clip).size == 32
    clip.visual.preprocess_cfg = {"size": (24, 24), "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}
    found = Preprocessing.of(clip)
    assert found == Preprocessing(24, (0, 0, 0), (1, 1, 1), "bilinear")
    assert Preprocessing.from_dict(found.to_dict()) == found


def test_checking_names_the_first_ten_or_leaves_them_out(root):
    items = [*ITEMS, *(Item(f"bad{n:02}.png", 0, "bad") for n in range(12))]
    for item in items[7:]:
        (root / item.path).write_bytes(b"")
    with pytest.raises(InputError, match=r"12 of 19 images cannot be read: bad00.*bad09\.png; --skip-bad-images"):
        check_images(reader(root), items)
    good, bad = check_images(reader(root), items, skip_bad=True)
    assert good == ITEMS
    assert [path for path, _ in bad] == [item.path for item in items[7:]]
    assert check_images(reader(root), ITEMS) == (ITEMS, [])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_past_unreadable_images_and_says_which(root, workers):
    for number in (0, 1, 4):
        (root / f"{number}.png").write_bytes(b"x")
    images = EvalImages(reader(root), ITEMS, eval_transform(PREPROCESSING))
    loader = DataLoader(images, 2, num_workers=workers, collate_fn=collate_readable)
    found = list(loader)
    assert [labels.tolist() for _, labels, _ in found] == [[], [2, 0], [2], [0]]
    assert [len(batch) for batch, _, _ in found] == [0, 2, 1, 1]
    unreadable = [sentence for _, _, sentences in found for sentence in sentences]
    assert [s.split(" cannot")[0].rsplit("/")[-1] for s in unreadable] == ["0.png", "1.png", "4.png"]
