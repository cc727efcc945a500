"""Images by description."""

import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from instil.base import data
from instil.base.errors import InstilError


def test_the_stored_split_is_a_split():
    train, held_out = (set(data.digits_split(name).tolist()) for name in ("train", "held-out"))
    assert (len(train), len(held_out)) == (1198, 599)
    assert train | held_out == set(range(1797))
    extractor = set(data.digits_split("extractor").tolist())
    assert len(extractor) == 599
    assert extractor < train
    assert len(data.load("digits:all")) == 1797


def test_digits_are_the_digits():
    images = data.load("digits:held-out")
    rows = data.digits_split("held-out")
    bunch = load_digits()
    grey = data.to_float(images.pixels)[:, 0].numpy()
    np.testing.assert_allclose(grey, bunch.images[rows] / 8 - 1, atol=0.5001 / 127.5)
    assert images.labels.tolist() == bunch.target[rows].tolist()


def test_class_filters_renumber():
    images = data.load("digits:held-out:5-7,9")
    assert images.classes == ("5", "6", "7", "9")
    every = data.load("digits:held-out")
    kept = torch.isin(every.labels, torch.tensor([5, 6, 7, 9]))
    assert torch.equal(images.pixels, every.pixels[kept])
    names = [int(images.classes[label]) for label in images.labels]
    assert names == every.labels[kept].tolist()


def test_quantisation_is_exact_on_its_own_levels():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.to_uint8(data.to_float(levels)), levels)
    beyond = torch.tensor([-2.0, 1.5])
    assert data.to_uint8(beyond).tolist() == [0, 255]
    with pytest.raises(FloatingPointError, match="2 of 3 values of generated images are not fin"):
        data.to_uint8(torch.tensor([float("nan"), 0.0, float("inf")]))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_folder_its_zip_and_its_arrays_agree(folder, tmp_path):
    images = data.load(str(folder))
    assert images.shape == (3, 4, 6)
    assert images.classes == ("cat", "dog")
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*.png"):
            file.write(path, path.relative_to(tmp_path))
    zipped = data.load(str(archive))
    arrays = tmp_path / "photos.npz"
    np.savez(arrays, images=images.pixels.permute(0, 2, 3, 1).numpy(), labels=images.labels.numpy())
    saved = data.load(str(arrays))
    assert images.digest() == zipped.digest() == saved.digest()
    assert zipped.classes == images.classes
    assert len(data.load(f"{folder}:dog")) == 3


def test_images_of_a_flat_folder_have_no_classes(folder):
    images = data.load(str(folder / "cat"))
    assert images.labels is None
    assert images.classes == ()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nonsense", "nonsense: no such file or folder"),
        ("digits:0-x", "'0-x' is no class; classes are 0, 1"),
        ("digits:train:0:1", r"expected digits\[:split\]\[:classes\]"),
        ("mnist", "mnist: not below .*INSTIL_DATA"),
    ],
)
def test_descriptions_that_mean_nothing(source, message, monkeypatch, tmp_path):
    monkeypatch.setenv("INSTIL_DATA", str(tmp_path))
    with pytest.raises(InstilError, match=message):
        data.load(source)


def test_files_that_are_no_images(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InstilError, match="holds no images"):
        data.load(str(tmp_path / "empty"))
    Image.new("RGB", (5, 5)).save(folder / "dog" / "9.png")
    with pytest.raises(InstilError, match=r"dog/9.png has the shape \(3, 5, 5\)"):
        data.load(str(folder))
    (folder / "cat" / "0.png").write_bytes(b"no")
    with pytest.raises(InstilError, match=r"cat/0.png is not a readable image"):
        data.load(str(folder))
    (tmp_path / "x.zip").write_bytes(b"no")
    with pytest.raises(InstilError, match="cannot be read"):
        data.load(str(tmp_path / "x.zip"))
    (tmp_path / "x.txt").write_text("no")
    with pytest.raises(InstilError, match=r"got a '.txt' file"):
        data.load(str(tmp_path / "x.txt"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "expected an array named images"),
        ({"images": np.zeros((2, 4, 4))}, "must be uint8"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "must be uint8"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "labels must be 2"),
        ({"images": np.array([{"a": 1}, {}], dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, message):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(InstilError, match=message):
        data.load(str(path))


def test_mnist_below_the_data_root(data_root, tmp_path, monkeypatch):
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "raw").symlink_to(data_root / "mnist-t10k")
    for root in (tmp_path, data_root):
        monkeypatch.setenv("INSTIL_DATA", str(root))
        images = data.load("mnist:test:5-9")
        assert images.shape == (1, 28, 28)
        assert len(images) == 4861  # a fact about MNIST's test set
    parts = [data.load(f"mnist14:{name}") for name in ("train", "held-out", "all")]
    assert [len(part) for part in parts] == [8000, 2000, 10_000]
    whole = data.load("mnist:test").pixels
    corner = whole[4, 0, 10:12, 12:14].double().mean()  # row 4 is the first held out
    assert abs(parts[1].pixels[0, 0, 5, 6] - corner) <= 0.5
    assert parts[1].labels[1] == data.load("mnist:test").labels[9]


def test_cifar10_below_the_data_root(tmp_path, monkeypatch):
    living = ["bird", "cat", "deer", "dog", "frog", "horse"]
    classes = ["airplane", "automobile", *living, "ship", "truck"]
    with zipfile.ZipFile(tmp_path / "cifar10-test.zip", "w") as archive:
        for number, name in enumerate(classes):
            image = BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(image, "png")
            archive.writestr(f"test/{name}/0.png", image.getvalue())
    monkeypatch.setenv("INSTIL_DATA", str(tmp_path))
    vehicles = data.load("cifar10:test:vehicles")
    assert vehicles.classes == ("airplane", "automobile", "ship", "truck")
    assert vehicles.pixels[:, 0, 0, 0].tolist() == [0, 1, 8, 9]
    assert data.load("cifar10:test:animals").pixels[:, 0, 0, 0].tolist() == list(range(2, 8))
    assert data.load("cifar10:test:cat,truck").classes == ("cat", "truck")
    with pytest.raises(InstilError, match=r"no cifar10\*train\.zip below"):
        data.load("cifar10")
