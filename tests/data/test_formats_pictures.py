"""Pictures and TIFF: true values and indices, compressions, stacks, spacing, and masks with soft edges."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from image_folders import SIZE, label_of
from medical_files import encode, png_of_bits
from PIL import Image, ImageOps

from ahm_gym.data import open_data
from ahm_gym.data.formats import kind_of, pictures, read_pixels
from ahm_gym.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 18), dtype=np.uint8)
RGB = np.full((12, 18, 3), (0, 90, 30), np.uint8)
RGB[:, :, 0] = np.arange(18) * 14
INDICES = np.zeros((12, 18), np.uint8)
INDICES[2:6, 2:6], INDICES[7:11, 9:15] = 1, 2


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("is_label", [False, True])
def test_a_grey_png_of_few_bits_has_its_true_values(tmp_path: Path, bits: int, is_label: bool):
    array = RNG.integers(0, 2**bits, (11, 13), dtype=np.uint8)
    assert (read_pixels(png_of_bits(tmp_path / "a.png", array, bits), is_label=is_label).array == array).all()


def test_transparency_leaves_the_number_of_channels(tmp_path: Path):
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY // 2)]).save(tmp_path / "a.png")
    assert (read_pixels(tmp_path / "a.png").array == GREY).all()
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([GREY, GREY // 2]), photometric="minisblack", extrasamples=[2]
    )
    assert (read_pixels(tmp_path / "a.tif").array == GREY).all()
    tifffile.imwrite(tmp_path / "b.tif", np.dstack([RGB, GREY]), photometric="rgb", extrasamples=[2])
    assert (read_pixels(tmp_path / "b.tif").array == RGB).all()


def test_16_bits_are_kept(tmp_path: Path):
    array = GREY.astype(np.uint16) * 200
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (read_pixels(tmp_path / "a.png").array == array).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_viewers_do(tmp_path: Path, suffix: str, turn: int):
    array = np.repeat(np.repeat(RNG.integers(0, 2, (3, 4), dtype=np.uint8) * 200, 8, 0), 8, 1)
    image = Image.fromarray(array)
    tags = Image.Exif()
    tags[274] = turn
    image.save(tmp_path / f"a{suffix}", **({"tiffinfo": {274: turn}} if suffix == ".tif" else {"exif": tags}))
    image.getexif()[274] = turn
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.abs(read_pixels(tmp_path / f"a{suffix}").array.astype(int) - expected).max() < 20


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif"])
def test_a_palette_gives_indices_to_a_label_and_colours_to_an_image(tmp_path: Path, suffix: str):
    picture = Image.fromarray(INDICES).convert("P")
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    picture.putpalette(colours.ravel().tolist() + [0] * 759)
    picture.save(tmp_path / f"a{suffix}")
    assert (read_pixels(tmp_path / f"a{suffix}", is_label=True).array == INDICES).all()
    assert (read_pixels(tmp_path / f"a{suffix}").array == colours[INDICES]).all()


@pytest.mark.parametrize(
    "kind", ["bit.bmp", "bit.tif", "bit.gif", "white.tif", "ramp.tif", "grey.gif", "bit.png"]
)
def test_labels_of_one_bit_or_with_grey_palettes_become_indices(tmp_path: Path, kind: str):
    label = np.minimum(INDICES, 1)
    path = tmp_path / "labels" / f"a.{kind[-3:]}"
    path.parent.mkdir()
    encode(tmp_path / "images" / "a.png", GREY)
    if kind == "white.tif":
        tifffile.imwrite(path, label == 0, photometric="miniswhite")
    elif kind == "ramp.tif":
        picture = Image.fromarray(label).convert("P")
        picture.putpalette([value for index in range(256) for value in (index,) * 3])
        picture.save(path)
    else:
        Image.fromarray(label * 255 if kind == "grey.gif" else label > 0).save(path)
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    assert (label_of(dataset, 0).numpy() == label).all() and dataset.num_classes == 2


def test_a_picture_under_another_name_is_read_by_its_content_and_said(tmp_path: Path, capsys):
    Image.fromarray(np.where(INDICES > 0, 255, 0).astype(np.uint8)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    assert kind_of(tmp_path / "a.png") == ".gif"
    assert (read_pixels(tmp_path / "a.png").array == np.where(INDICES > 0, 255, 0)).all()
    open_data(str(tmp_path), image_size=SIZE)
    assert "1 of 1 file: named .png but with the content of a .gif file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_is_refused(tmp_path: Path, suffix: str):
    frames = [Image.fromarray(RNG.integers(0, 256, (12, 18), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="it is an animation of 3 frames: save the frames"):
        read_pixels(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".webp", ".jp2", ".j2k"])
def test_webp_and_jpeg_2000_are_read(tmp_path: Path, suffix: str):
    if suffix == ".webp":
        Image.fromarray(RGB).save(tmp_path / "a.webp", lossless=True)
        assert (read_pixels(tmp_path / "a.webp").array == RGB).all()
        return
    for array in (RGB, GREY, GREY.astype(np.uint16) * 200):
        assert (read_pixels(encode(tmp_path / f"a{suffix}", array)).array == array).all()


def test_cmyk_is_read_as_rgb(tmp_path: Path):
    for suffix in (".tif", ".jpg"):
        Image.fromarray(RGB).convert("CMYK").save(tmp_path / f"a{suffix}", quality=95)
        assert np.abs(read_pixels(tmp_path / f"a{suffix}").array.astype(int) - RGB).max() < 12


def test_a_mask_with_soft_edges_is_cut_at_half_and_said(tmp_path: Path, capsys):
    large = np.zeros((96, 144), np.uint8)
    cv2.circle(large, (70, 50), 27, 255, -1)
    soft = cv2.resize(large, (48, 32), interpolation=cv2.INTER_AREA)
    encode(tmp_path / "images" / "a.png", RNG.integers(0, 255, (32, 48), dtype=np.uint8))
    encode(tmp_path / "labels" / "a.png", np.dstack([soft] * 3))
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    assert (label_of(dataset, 0).numpy() == (soft > 127)).all()
    assert "1 of 1 file: a mask with soft edges, which are cut at half (labels)" in capsys.readouterr().err
    soft[:20, :12] = 128
    encode(tmp_path / "labels" / "a.png", soft)
    with pytest.raises(InputError, match="class index out of range"):
        open_data(str(tmp_path), image_size=SIZE, native_resolution=True)


@pytest.mark.parametrize(
    "kind", ["zlib", "zstd", "lzw", "packbits", "lzma", "jpeg", "jpeg2000", "webp", "deflate"]
)
def test_tiff_is_read_in_every_compression(tmp_path: Path, kind: str):
    tifffile.imwrite(tmp_path / "a.tif", RGB, compression=kind, photometric="rgb")
    limit = 12 if kind in ("jpeg", "webp") else 0
    assert np.abs(read_pixels(tmp_path / "a.tif").array.astype(int) - RGB).max() <= limit


@pytest.mark.parametrize(
    "kind", ["int8", "int16", "int32", "uint16", "uint32", "float16", "float32", "float64"]
)
def test_tiff_is_read_in_every_type(tmp_path: Path, kind: str):
    array = (np.mgrid[:12, :18][1] * 2 - (0 if kind[0] == "u" else 17)).astype(kind)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", array)
    tifffile.imwrite(tmp_path / "labels" / "a.tif", INDICES.astype(kind))
    assert (read_pixels(tmp_path / "images" / "a.tif").array == array).all()
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    assert (label_of(dataset, 0).numpy() == INDICES).all()


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_a_tiff_may_have_many_channels_in_a_page(tmp_path: Path, planes: str):
    array = RNG.integers(0, 255, (12, 18, 6), dtype=np.uint8)
    stored = array if planes == "contig" else np.moveaxis(array, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planes)
    pixels = read_pixels(tmp_path / "a.tif")
    assert (pixels.array == array).all() and not pixels.is_volume


@pytest.mark.parametrize("one_directory", [False, True])
def test_an_imagej_stack_is_a_volume_with_its_spacing(tmp_path: Path, one_directory: bool):
    stack = RNG.integers(0, 60000, (7, 12, 18), dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", stack, imagej=True, truncate=one_directory, resolution=(1 / 0.5, 1 / 0.25),
        metadata={"axes": "ZYX", "unit": "um", "spacing": 2.0},
    )  # fmt: skip
    pixels = read_pixels(tmp_path / "a.tif")
    assert pixels.is_volume and (pixels.array == np.moveaxis(stack, 0, 2)).all()
    assert pixels.spacing == pytest.approx((0.00025, 0.0005, 0.002))


def test_channels_time_and_many_planes_of_imagej(tmp_path: Path):
    def stored(axes: str, *shape: int):
        array = RNG.integers(0, 60000, (*shape, 12, 18), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": axes})
        return array, read_pixels(tmp_path / "a.tif")

    array, pixels = stored("CYX", 3)
    assert not pixels.is_volume and (pixels.array == np.moveaxis(array, 0, 2)).all()
    array, pixels = stored("ZCYX", 5, 2)
    assert pixels.is_volume and (pixels.array == array.transpose(2, 3, 0, 1)).all()
    array, pixels = stored("TZYX", 4, 5)
    assert pixels.fourth == "time" and (pixels.array == array.transpose(2, 3, 1, 0)).all()
    array, pixels = stored("CYX", 20)
    assert pixels.is_volume and "read as slices" in pixels.notes[0]
    with pytest.raises(InputError, match="its axes are TZCYX"):
        stored("TZCYX", 2, 3, 2)


def test_ome_tiff_states_its_spacing(tmp_path: Path):
    stack = RNG.integers(0, 60000, (5, 12, 18), dtype=np.uint16)
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 250.0, "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, ome=True, metadata={"axes": "ZYX", **sizes})
    pixels = read_pixels(tmp_path / "a.ome.tif")
    assert (pixels.array == np.moveaxis(stack, 0, 2)).all()
    assert pixels.spacing == pytest.approx((0.00025, 0.0005, 0.002))


def test_pages_of_several_sizes_are_refused(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY)
        file.write(GREY[:6, :9])
    with pytest.raises(InputError, match="its pages differ: 12x18, 6x9; save the one that is meant"):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("imagej", [False, True])
def test_a_stack_cut_anywhere_is_refused(tmp_path: Path, imagej: bool, compression: str | None):
    pages = RNG.integers(0, 60000, (6, 12, 18), dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif", imagej=imagej) as file:
        for page in [pages] if imagej else pages:
            file.write(page, contiguous=False, compression=None if imagej else compression)
    content = (tmp_path / "a.tif").read_bytes()
    assert read_pixels(tmp_path / "a.tif").array.shape == (12, 18, 6) or imagej
    for share in np.linspace(0.05, 0.98, 20):
        (tmp_path / "a.tif").write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match="cannot be read"):
            read_pixels(tmp_path / "a.tif")


def test_an_inverted_scale_of_greys_is_turned_round_in_images(tmp_path: Path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    assert (read_pixels(tmp_path / "a.tif").array == 255 - GREY).all()
    tifffile.imwrite(tmp_path / "a.tif", INDICES, photometric="miniswhite")
    assert (read_pixels(tmp_path / "a.tif", is_label=True).array == INDICES).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".webp"])
@pytest.mark.parametrize("begins", [False, True])
def test_a_sparse_file_is_refused_before_it_is_read_whole(tmp_path, monkeypatch, suffix, begins):
    path = tmp_path / f"a{suffix}"
    if begins:
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    with path.open("ab") as file:
        file.truncate(2_000_000_000)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("the file was read whole"))
    with pytest.raises(InputError, match=f"a{suffix} cannot be read .*copy it again or remove it"):
        read_pixels(path)


def test_a_large_picture_that_its_header_accounts_for_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 0)
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "MAX_PIXEL_BYTES", 0)
        with pytest.raises(InputError, match="it has 0 MiB for 64 pixels"):
            read_pixels(path)
    assert read_pixels(path).array.shape == (8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert read_pixels(path).array.shape == (8, 8)
