"""Streams, protocols, errors: measurements of what people have on their disks."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fid import random_inception
from eval.__main__ import main
from eval.quality import features, metrics, sources
from eval.quality.extraction import extract, shrunk
from eval.quality.further import density_and_coverage, jackknife
from instil.base import data
from instil.base.errors import InstilError

# Features and distances of pytorch-fid 0.3.0 and clean-fid 0.1.35 on the images and weights below.
GOLDEN = {"pytorch-fid": (1.0742435998734152, 0.1569063), "clean": (1.1694266573716534, 0.1660639)}


def squares(seed, count=6):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        low = draw.integers(0, 256, (6, 7, 3))
        image = np.kron(low, np.ones((8, 8, 1))) + draw.integers(-20, 21, (48, 56, 3)) + 10 * seed
        yield Image.fromarray(image.clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    for number, image in enumerate(squares(0)):
        image.save(tmp_path / f"{number}.png")
    return tmp_path


def small_sample_fid(first, second):
    """FID of fewer images than features: the trace of the root is a nuclear norm."""
    one, two = (x - x.mean(0) for x in (first, second))
    scale = ((len(one) - 1) * (len(two) - 1)) ** 0.5
    shared = np.linalg.svd(one @ two.T / scale, compute_uv=False).sum()
    spread = (one**2).sum() / (len(one) - 1) + (two**2).sum() / (len(two) - 1)
    return ((first.mean(0) - second.mean(0)) ** 2).sum() + spread - 2 * shared


@pytest.mark.slow
def test_protocols_give_the_figures_of_their_tools(tmp_path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        for number, image in enumerate(squares(seed)):
            image.save(tmp_path / str(seed) / f"{number}.png")
    random_inception(tmp_path / "weights.pth")
    for protocol, (distance, mean) in GOLDEN.items():
        extractor = features.load("inception", tmp_path / "weights.pth", "cpu", protocol)
        sets = [sources.load(str(tmp_path / str(seed)), True, extractor.mixed) for seed in (0, 1)]
        first, second = (extract(s, [extractor])[0].values.double().numpy() for s in sets)
        assert first.mean() == pytest.approx(mean, rel=1e-5)
        assert small_sample_fid(first, second) == pytest.approx(distance, rel=1e-4)


def test_folders_and_zips_stream_what_is_in_memory(folder):
    whole = data.load(str(folder))
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for file in folder.glob("*.png"):
            archive.write(file, file.name)
    for source in (folder, folder / "all.zip"):
        stream = sources.load(str(source), batch=4)
        torch.testing.assert_close(torch.cat(list(stream.read(stream.parts))), whole.pixels)
    loaded = sources.load(str(folder), workers=1, batch=4)
    torch.testing.assert_close(torch.cat(list(loaded.read(loaded.parts))), whole.pixels)


def test_a_digest_changes_with_any_file(folder):
    before = sources.load(str(folder)).digest()
    Image.new("RGB", (56, 48)).save(folder / "3.png")
    assert sources.load(str(folder)).digest() != before


def test_unusual_images_are_converted_as_pillow_does_and_said(folder, capsys):
    for name, mode in (("6", "RGBA"), ("7", "P"), ("8", "L")):
        Image.open(folder / "0.png").convert(mode).save(folder / f"{name}.png")
    Image.open(folder / "0.png").convert("CMYK").save(folder / "9.jpg")
    stream = sources.load(str(folder), colour=True)
    (pixels,) = stream.read(stream.parts)
    assert pixels.shape == (10, 3, 48, 56)
    torch.testing.assert_close(pixels[6], pixels[0])
    said = capsys.readouterr().err
    assert "6.png and any like it: RGBA converted to RGB" in said
    assert "9.jpg and any like it: CMYK converted to RGB" in said


def test_deep_and_mixed_images_are_refused_by_name(folder):
    Image.new("RGB", (20, 20)).save(folder / "8.png")
    stream = sources.load(str(folder))
    with pytest.raises(InstilError, match=r"8.png has the shape \(3, 20, 20\)"):
        list(stream.read(stream.parts))
    mixed = sources.load(str(folder), mixed=True)
    (images,) = mixed.read(mixed.parts)
    assert [tuple(image.shape) for image in images[-2:]] == [(3, 48, 56), (3, 20, 20)]
    Image.new("I;16", (56, 48)).save(folder / "8.png")
    with pytest.raises(InstilError, match=r"8.png is not a readable image \(more than 8 bits"):
        list(stream.read(stream.parts))


def test_statistics_carry_their_protocol(tmp_path):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=draw)

    def forward(images):
        wide = images.flatten(1).float().repeat(1, 128)
        return wide, wide[:, :0]

    clean = features.Extractor("FID (clean)", False, forward, protocol="clean")
    metrics.save_statistics(metrics.reference_of(pixels, clean), tmp_path / "s.npz")
    assert metrics.distance(pixels, metrics.load_reference(str(tmp_path / "s.npz"), clean)) < 1e-3
    other = features.Extractor("FID", False, forward, protocol="tf1-compat")
    with pytest.raises(InstilError, match="made with --protocol clean, not tf1-compat"):
        metrics.load_reference(str(tmp_path / "s.npz"), other)


def test_the_jackknife_finds_error_and_bias():
    draw = torch.Generator().manual_seed(0)
    reference = {"mu": np.zeros(8), "sigma": np.eye(8)}
    found = [
        (
            metrics.frechet(metrics.statistics(values), reference),
            *jackknife(values, reference),
        )
        for values in torch.randn(60, 200, 8, generator=draw)
    ]
    plain, errors, unbiased = np.array(found).T
    assert abs(unbiased.mean()) < 0.1 * plain.mean()  # the distance of the laws is 0
    moved = torch.randn(60, 200, 8, generator=draw) + 1
    pairs = np.array([jackknife(values, reference) for values in moved])
    assert pairs[:, 0].mean() == pytest.approx(pairs[:, 1].std(ddof=1), rel=0.3)
    assert pairs[:, 1].mean() == pytest.approx(8, rel=0.03)
    assert len(errors) == 60


def test_covariances_are_numpys():
    values = torch.randn(9000, 5, generator=torch.Generator().manual_seed(0)) + 3
    found = metrics.statistics(values)
    expected = np.cov(values.double().numpy(), rowvar=False)
    np.testing.assert_allclose(found["sigma"], expected, rtol=1e-12, atol=1e-13)


def test_density_and_coverage_of_known_sets():
    points = torch.arange(12.0)[:, None]
    assert density_and_coverage(points + 100, points) == (0, 0)
    density, coverage = density_and_coverage(points.repeat(2, 1), points)
    assert coverage == 1
    assert density > 0.7
    _, half = density_and_coverage(points[:1], points)
    assert half < 0.5


def test_copies_are_found_in_small(folder):
    pixels = data.load(str(folder)).pixels
    assert shrunk(pixels).shape == (6, 3, 32, 32)
    assert metrics.copy_rate(shrunk(pixels[:3]), shrunk(pixels)) == 1
    assert metrics.copy_rate(shrunk(pixels[:3]), shrunk(pixels[3:])) == 0


def test_students_and_several_extractors_in_one_command(capsys):
    words = "fid --student digits-gan --reference digits --extractor digits,digits --samples 40"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert out.count("fd infinity") == 2
    assert "-0.0000" not in out
