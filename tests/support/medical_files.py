"""Small files of the kinds that scanners, microscopes and programs write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import imagecodecs
import nibabel
import numpy as np
import SimpleITK
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def dicom(
    path: Path, array: np.ndarray, *, code: bytes | None = None, syntax=ExplicitVRLittleEndian, **tags
) -> Path:
    """Writes a DICOM file of one frame (H, W), in colour (H, W, 3) or with several frames (F, H, W).

    `code` is the compressed frame, in the syntax that is given.
    """
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    colour = array.ndim == 3 and array.shape[2] == 3
    file.SamplesPerPixel = 3 if colour else 1
    if colour:
        file.PlanarConfiguration = 0
    elif array.ndim == 3:
        file.NumberOfFrames = array.shape[0]
    file.Rows, file.Columns = array.shape[:2] if colour else array.shape[-2:]
    file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = array.itemsize * 8
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(array.dtype.kind == "i")
    file.PixelData = array.tobytes() if code is None else encapsulate([code])
    file["PixelData"].is_undefined_length = code is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def encode(path: Path, array: np.ndarray) -> Path:
    """Writes an image in the format of the suffix."""
    suffix = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(path, array)
    elif suffix in (".dcm", ".ima"):
        dicom(path, array)
    elif ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    elif suffix in (".mha", ".mhd", ".nrrd", ".nhdr"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    elif suffix in (".jp2", ".j2k"):
        path.write_bytes(imagecodecs.jpeg2k_encode(array, codecformat=suffix[1:], reversible=True))
    elif suffix == ".gif":
        Image.fromarray(array).save(path)
    else:
        assert cv2.imwrite(str(path), array)
    return path


def volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **changes) -> Path:
    """Writes a NIfTI volume; `changes` are fields of the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for name, value in changes.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def volumes_in(root: Path, sizes: list[tuple[int, ...]], spacings: list[tuple[float, ...]]) -> Path:
    """Writes NIfTI volumes and their labels, which are class 1 where the intensity is high; returns the folder."""
    generator = np.random.default_rng(0)
    for number, (size, spacing) in enumerate(zip(sizes, spacings, strict=True)):
        array = generator.integers(1, 900, size).astype(np.int16)
        affine = np.diag([*spacing, 1.0])
        volume(root / "images" / f"p{number}.nii.gz", array, affine)
        volume(root / "labels" / f"p{number}.nii.gz", (array > 450).astype(np.uint8), affine)
    return root


def png_of_bits(path: Path, array: np.ndarray, bits: int) -> Path:
    """Writes a grey PNG of 1, 2 or 4 bits."""
    rows = b""
    for row in array:
        padded = np.pad(row, (0, -len(row) % (8 // bits))).reshape(-1, 8 // bits)
        rows += b"\0" + (padded << np.arange(8 - bits, -1, -bits)).sum(1).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def slices_of(
    array: np.ndarray, folder: Path, directions: list[float], step: np.ndarray, **tags
) -> list[Path]:
    """Writes slices (S, H, W) as the files of a series, in shuffled order of their names."""
    series = generate_uid()
    places = np.random.default_rng(0).permutation(len(array))
    return [
        dicom(
            folder / f"IM{name:04d}",
            array[at],
            SeriesInstanceUID=series,
            ImageOrientationPatient=directions,
            ImagePositionPatient=(np.array([10.0, -20.0, 30.0]) + at * step).tolist(),
            PixelSpacing=[0.5, 0.25],
            **tags,
        )
        for name, at in enumerate(places)
    ]
