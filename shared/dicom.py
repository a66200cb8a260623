"""Takes the picture out of a DICOM file, as it would be shown on a screen. It keeps no tag, and prints none.

<https://dicom.nema.org/medical/dicom/current/output/html/part03.html>, C.7.6.3 and C.11.
"""

import io
import logging
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    apply_windowing,
)
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from shared.pictures import BrokenPicture, PictureBomb, check_picture, too_large

# both would quote what stands in a tag, which may be a name
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_EXPORT = "Export the picture as PNG or JPEG, and cover what is written into it."
_SYNTAXES = (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)
_SEGMENTED = tuple(
    f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue", "Alpha")
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422")
_PALETTE = "PALETTE COLOR"
#: Beyond every value of a pixel.
_FAR = 1e15

_Pixels = NDArray[np.number]


def read_dicom(data: bytes, *, max_pixels: int) -> Image.Image:
    """The first frame in 8 bits, grey or RGB: grey is shown through the file's own window, where it has one.

    The head tells how large all frames would unpack; nothing is unpacked that is too large.

    Raises:
        BrokenPicture: it does not open, is packed in a way that is not read here, has no picture or more than
            `max_pixels`, or says that a name may be written into the picture.
        PictureBomb: its first frame is made to be larger than the file says.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(data, max_pixels)
    except (BrokenPicture, PictureBomb):
        raise
    except MemoryError:
        raise PictureBomb from None
    except Exception:  # whatever a broken file makes of the reader
        raise BrokenPicture(f"This DICOM file cannot be read. {_EXPORT}") from None


def _read(data: bytes, max_pixels: int) -> Image.Image:
    if _syntax(data) not in _SYNTAXES:  # before the rest is read: one of them is a zip
        raise BrokenPicture(f"The picture in this DICOM file is packed in a way not read here. {_EXPORT}")
    dataset = dcmread(io.BytesIO(data))
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise BrokenPicture(f"This DICOM file says that a name may be written into its picture. {_EXPORT}")
    if any(name in dataset for name in _SEGMENTED):  # some bytes of it may stand for any number of colours
        raise BrokenPicture(f"The colours of this DICOM file are not read here. {_EXPORT}")
    if not any(name in dataset for name in _PIXELS):
        raise BrokenPicture(f"This DICOM file holds no picture. {_EXPORT}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if int(dataset.Rows) * int(dataset.Columns) * frames > max_pixels:
        raise too_large(max_pixels)
    if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:  # which has a head and a size of its own
        frame = get_frame(dataset.PixelData, 0, number_of_frames=frames)
        check_picture(io.BytesIO(frame), max_pixels=max_pixels)
    return Image.fromarray(_shown(pixel_array(dataset, index=0), dataset))


def _syntax(data: bytes) -> object:
    """How the file is packed, as its head says; nothing else is read."""
    file = io.BytesIO(data)
    read_preamble(file, False)
    head = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    return head.TransferSyntaxUID


def _shown(pixels: _Pixels, dataset: Dataset) -> NDArray[np.uint8]:
    """What a screen shows, in 8 bits."""
    kind = str(dataset.PhotometricInterpretation)
    if kind in _COLOUR:
        return _in_bytes(pixels, 0, _largest(dataset.BitsStored))
    if kind == _PALETTE:
        pixels = apply_color_lut(pixels, dataset)
        return _in_bytes(pixels, 0, 2 ** (8 * pixels.itemsize) - 1)
    if kind not in _GREY:
        raise BrokenPicture(f"The colours of this DICOM file are not read here. {_EXPORT}")
    values = apply_modality_lut(pixels, dataset)
    shown = apply_voi_lut(values, dataset)
    grey = _in_bytes(shown, *_range(shown, dataset))
    return 255 - grey if kind == "MONOCHROME1" else grey


def _range(shown: _Pixels, dataset: Dataset) -> tuple[float, float]:
    """What is black and what is white: of the window, or of the picture where the file has none."""
    if dataset.get("VOILUTSequence") and "LUTData" in (table := dataset.VOILUTSequence[0]):
        return 0, _largest(table.LUTDescriptor[2])
    if "WindowWidth" in dataset and "WindowCenter" in dataset:
        black, white = apply_windowing(np.array([-_FAR, _FAR]), dataset)
        return float(black), float(white)
    return float(shown.min()), float(shown.max())


def _largest(bits: object) -> int:
    """The largest number of so many bits. Raises BrokenPicture for what no file of this kind has."""
    count = int(str(bits))
    if not 1 <= count <= 16:
        raise BrokenPicture(f"This DICOM file cannot be read. {_EXPORT}")
    return (1 << count) - 1


def _in_bytes(pixels: _Pixels, black: float, white: float) -> NDArray[np.uint8]:
    if (black, white) == (0, 255) and pixels.dtype == np.uint8:
        return pixels.astype(np.uint8)
    scaled = (pixels.astype(np.float32) - black) * (255 / max(white - black, 1e-9))
    shown: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return shown
