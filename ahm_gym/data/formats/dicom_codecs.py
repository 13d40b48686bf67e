"""Lets pydicom decode lossless JPEG and JPEG-LS by imagecodecs, in the form of pydicom's plug-ins."""

from __future__ import annotations

from typing import Any

import imagecodecs
from pydicom import uid
from pydicom.pixels import get_decoder

NAME = "imagecodecs"
JPEG_LOSSLESS: tuple[str, ...] = (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS: tuple[str, ...] = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
DECODER_DEPENDENCIES: dict[str, tuple[str, ...]] = dict.fromkeys((*JPEG_LOSSLESS, *JPEG_LS), (NAME,))
"""What pydicom lists for each syntax if `is_available` says no."""


def is_available(syntax: str) -> bool:
    """Whether frames of this transfer syntax can be decoded; pydicom asks by this name."""
    return bool((imagecodecs.LJPEG if syntax in JPEG_LOSSLESS else imagecodecs.JPEGLS).available)


def decode_frame(source: bytes, runner: Any) -> bytes:
    """The values of one frame.

    Raises:
        NotImplementedError: for a colour image in lossless JPEG.
    """
    if runner.transfer_syntax in JPEG_LS:
        values = imagecodecs.jpegls_decode(source)
        runner.set_option("planar_configuration", 0)
    elif runner.samples_per_pixel == 1:
        values = imagecodecs.ljpeg_decode(source)
    else:
        raise NotImplementedError("imagecodecs reads lossless JPEG without colours only")
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    return values.tobytes()


def register() -> None:
    """Adds the decoders to those of pydicom, once."""
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid.UID(syntax))
        if NAME not in decoder.available_plugins:
            decoder.add_plugin(NAME, (__name__, "decode_frame"))
