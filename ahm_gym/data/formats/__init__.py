"""Reads one image or label file of any supported format; one file per kind of format."""

from ahm_gym.data.formats.dicom import NotAnImage
from ahm_gym.data.formats.dicom_series import read_series, series_key
from ahm_gym.data.formats.encoding import encode_mask
from ahm_gym.data.formats.grids import Grid
from ahm_gym.data.formats.matching import match_label, with_frames
from ahm_gym.data.formats.names import fingerprint_of, is_readable, kind_of, stem_of, suffix_of
from ahm_gym.data.formats.pixels import Pixels
from ahm_gym.data.formats.planes import in_plane
from ahm_gym.data.formats.reading import PICTURES, READERS, read_pixels
from ahm_gym.data.formats.volumes import as_volume

__all__ = [
    "PICTURES",
    "READERS",
    "Grid",
    "NotAnImage",
    "Pixels",
    "as_volume",
    "encode_mask",
    "fingerprint_of",
    "in_plane",
    "is_readable",
    "kind_of",
    "match_label",
    "read_pixels",
    "read_series",
    "series_key",
    "stem_of",
    "suffix_of",
    "with_frames",
]
