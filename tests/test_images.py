"""Pictures as inputs: geometry and values to the last bit where nothing is resampled, and every refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnc import images
from cnnc.diagnostics import CnncError
from cnnc.images import Values, read_images
from cnnc.ir.dim import Dim, Sym
from cnnc.ir.types import DType, TensorType
from cnnc.target import Port

N = Sym.of("N")


def port(channels: int, rows: Dim, columns: Dim, doc: str = "", dtype: DType = DType.F32) -> Port:
    return Port("image", TensorType((N, channels, rows, columns), dtype), doc)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def pixels() -> np.ndarray:
    """4 rows, 8 columns, RGB, all values different."""
    return np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3) * 2


@pytest.fixture
def picture(tmp_path: Path, pixels: np.ndarray) -> Path:
    return save(tmp_path / "a.png", pixels)


def test_values_are_0_to_1_channels_first(picture: Path, pixels: np.ndarray) -> None:
    (array,) = read_images([picture], port(3, 4, 8))
    assert array.dtype == np.float32
    assert array.shape == (3, 4, 8)
    np.testing.assert_array_equal(array, pixels.transpose(2, 0, 1) / np.float32(255))


def test_longer_side_is_cropped_at_the_centre(picture: Path, pixels: np.ndarray) -> None:
    (array,) = read_images([picture], port(3, 4, 4))
    np.testing.assert_array_equal(array, pixels[:, 2:6].transpose(2, 0, 1) / np.float32(255))


def test_shorter_side_is_resized_to_fit(tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.png", np.full((30, 50, 3), 51, np.uint8))
    (array,) = read_images([flat], port(3, 224, 224))
    np.testing.assert_array_equal(array, np.full((3, 224, 224), np.float32(51) / np.float32(255)))


def test_doc_comment_sets_range_and_order_of_channels(picture: Path, pixels: np.ndarray) -> None:
    (array,) = read_images([picture], port(3, 4, 8, "Values 0..255, BGR."))
    np.testing.assert_array_equal(array, pixels[..., ::-1].transpose(2, 0, 1).astype(np.float32))


def test_doc_comment_sets_mean_and_deviation_of_each_channel(picture: Path, pixels: np.ndarray) -> None:
    doc = "RGB, 0..1, minus mean [0.485, 0.456, 0.406], divided by deviation [0.229, 0.224, 0.225]."
    (array,) = read_images([picture], port(3, 4, 8, doc))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(array, expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)
    (grey,) = read_images([picture], port(1, 4, 8, "mean [0.5], deviation [0.5]"))
    assert -1 <= grey.min() < grey.max() <= 1


def test_doc_comment_for_other_channels_is_refused(picture: Path) -> None:
    assert refusal([picture], port(1, 4, 8, "mean [0.485, 0.456, 0.406]")) == "E0320"


def test_doc_comment_sets_mean_and_variance(picture: Path) -> None:
    (array,) = read_images([picture], port(3, 4, 8, "mean 0, variance 1"))
    assert abs(array.mean()) < 1e-6
    assert abs(array.std() - 1) < 1e-6


@pytest.mark.parametrize(
    ("doc", "values"),
    [
        ("", Values()),
        ("A digit.", Values()),
        ("-1..1", Values(-1, 1)),
        ("White on black, values -0.5 .. 0.5, mean 0", Values(-0.5, 0.5, mean_0=True)),
        ("0..255 BGR", Values(0, 255, bgr=True)),
        ("A digit, grey, -0.1..1.175: mean about 0, variance about 1.", Values(-0.1, 1.175)),
        ("minus mean [0.4], divided by deviation [ 2, -3.5 ,4 ]", Values(mean=(0.4,), deviation=(2, -3.5, 4))),
        ("deviation 1", Values(variance_1=True)),
        ("mean 0.5", Values()),
    ],
)
def test_what_doc_comments_say(doc: str, values: Values) -> None:
    assert Values.of(doc) == values


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path: Path, picture: Path) -> None:
    assert read_images([picture], port(1, 4, 8)).shape == (1, 1, 4, 8)
    grey = save(tmp_path / "grey.png", np.full((4, 8), 255, np.uint8))
    np.testing.assert_array_equal(read_images([grey], port(3, 4, 8)), np.ones((1, 3, 4, 8), np.float32))


def test_several_pictures_make_a_batch(picture: Path, tmp_path: Path) -> None:
    black = save(tmp_path / "black.png", np.zeros((9, 9, 3), np.uint8))
    batch = read_images([picture, black], port(3, 4, 4))
    assert batch.shape == (2, 3, 4, 4)
    assert batch[0].any()
    assert not batch[1].any()


def test_open_sizes_are_those_of_the_picture(picture: Path) -> None:
    assert read_images([picture], port(3, Sym.of("H"), Sym.of("W"))).shape == (1, 3, 4, 8)
    assert read_images([picture], port(3, Sym.of("h") * 3, Sym.of("w") * 5)).shape == (1, 3, 3, 5)


def test_element_type_is_that_of_the_input(picture: Path) -> None:
    assert read_images([picture], port(3, 4, 8, dtype=DType.F16)).dtype == np.float16


def test_orientation_in_the_file_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 0] = 255
    turned = save(tmp_path / "turned.png", pixels, exif=exif)
    (array,) = read_images([turned], port(1, 8, 4))
    np.testing.assert_array_equal(array[0, 0], np.ones(4, np.float32))
    assert not array[0, 1:].any()


def refusal(paths: list[Path], port: Port) -> str:
    with pytest.raises(CnncError) as e:
        read_images(paths, port)
    return e.value.diagnostics[0].code


def test_an_input_of_another_shape_takes_no_picture(picture: Path) -> None:
    assert refusal([picture], port(16, 4, 8)) == "E0320"
    assert refusal([picture], Port("x", TensorType((N, 3)))) == "E0320"


def test_pictures_of_different_sizes_make_no_batch(picture: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.png", np.zeros((5, 5, 3), np.uint8))
    assert refusal([picture, other], port(3, Sym.of("H"), Sym.of("W"))) == "E0320"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\xff" * 40])
def test_what_is_no_picture_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(data)
    assert refusal([tmp_path / "bad.png"], port(3, 4, 4)) == "E0440"


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    noise = save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    (tmp_path / "half.png").write_bytes(noise.read_bytes()[: noise.stat().st_size // 2])
    assert refusal([tmp_path / "half.png"], port(3, 4, 4)) == "E0440"


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    deep = save(tmp_path / "deep.png", np.zeros((4, 4), np.uint16))
    assert refusal([deep], port(1, 4, 4)) == "E0440"


def test_too_many_pixels_are_refused(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 31)
    assert refusal([picture], port(3, 4, 4)) == "E0540"


def test_a_missing_file_is_an_io_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_images([tmp_path / "none.png"], port(3, 4, 4))
