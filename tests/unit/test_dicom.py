"""Pictures out of DICOM files, which the test writes."""

import io
import logging
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from shared import dicom
from shared.pictures import BrokenPicture, PictureBomb, prepare
from tests.drawn import encoded

Grey = list[list[int]]
STEPS: Grey = [[0, 1024, 2048, 4095]]


def written(
    pixels: Any = STEPS, syntax: str = ExplicitVRLittleEndian, packed: bytes | None = None, **tags: Any
) -> bytes:
    """A file of grey pixels of 12 bits, or of RGB; `packed` is the picture as the syntax packs it."""
    array = np.array(pixels, dtype=np.uint16 if np.ndim(pixels) < 3 else np.uint8)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName = "Example^Mary"
    dataset.Rows, dataset.Columns = array.shape[:2]
    colour = array.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = 8 if colour else 16
    dataset.BitsStored = 8 if colour else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = array.tobytes() if packed is None else encapsulate([packed])
    dataset["PixelData"].VR = "OB" if colour or packed else "OW"
    dataset["PixelData"].is_undefined_length = packed is not None
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, dataset, enforce_file_format=True)
    return sink.getvalue()


def shown(data: bytes) -> list[Any]:
    """The pixels of the first row."""
    image = Image.open(io.BytesIO(prepare(data).png))
    return [image.getpixel((x, 0)) for x in range(image.width)]


def test_grey_is_shown_through_the_window_of_the_file() -> None:
    data = written(WindowCenter=1536, WindowWidth=1024)
    assert shown(data) == pytest.approx([0, 0, 255, 255], abs=1)
    assert shown(written(WindowCenter=2048, WindowWidth=4096)) == pytest.approx([0, 64, 128, 255], abs=1)


def test_values_are_turned_into_units_before_the_window() -> None:
    data = written(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=512, WindowWidth=1024)
    assert shown(data) == pytest.approx([0, 0, 255, 255], abs=1)


def test_without_a_window_the_picture_says_what_is_black_and_white() -> None:
    assert shown(written([[100, 150, 200]])) == pytest.approx([0, 128, 255], abs=1)
    assert shown(written([[100, 100]])) == [0, 0]


def test_what_is_stored_inverted_is_shown_as_meant() -> None:
    assert shown(written([[0, 4095]], PhotometricInterpretation="MONOCHROME1")) == [255, 0]


def test_colours_stay() -> None:
    assert shown(written([[[255, 0, 0], [0, 0, 255]]])) == [(255, 0, 0), (0, 0, 255)]


def test_of_several_frames_the_first_is_shown() -> None:
    frames = np.array([[[0, 4095]], [[4095, 0]]], dtype=np.uint16)
    assert shown(written([[0, 4095]], NumberOfFrames=2, PixelData=frames.tobytes())) == [0, 255]


def test_rle_and_jpeg_are_unpacked() -> None:
    dataset = pydicom.dcmread(io.BytesIO(written()))
    dataset.compress(RLELossless, generate_instance_uid=False)
    sink = io.BytesIO()
    dataset.save_as(sink)
    assert shown(sink.getvalue()) == shown(written())
    red = np.full((16, 16, 3), (250, 5, 5), dtype=np.uint8)
    jpeg = encoded(Image.fromarray(red), "JPEG", quality=95, subsampling=0)
    data = written(red, JPEGBaseline8Bit, jpeg, PhotometricInterpretation="YBR_FULL_422")
    assert shown(data)[0] == pytest.approx((250, 5, 5), abs=12)


def test_no_tag_is_kept_and_none_is_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    data = written(StudyDescription="Mary's knee").replace(b"1.2.3\x00", b"Mary..")
    assert b"Mary" not in prepare(data).png
    with pytest.raises(BrokenPicture):
        prepare(data[:-2])
    with caplog.at_level(logging.DEBUG):
        prepare(data)
    assert "Mary" not in caplog.text + "".join(capfd.readouterr()) + "".join(str(w.message) for w in recwarn)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (written(BurnedInAnnotation="YES"), "cover what is written into"),
        (written(PixelData=None), "holds no picture"),
        (written(packed=b"\x00" * 8, syntax=JPEG2000Lossless), "packed in a way"),
        (written(syntax=DeflatedExplicitVRLittleEndian), "packed in a way"),
        (written(PhotometricInterpretation="HSV"), "colours"),
        (written()[:-4], "cannot be read"),
        (b"\x00" * 128 + b"DICM" + b"nothing", "cannot be read"),
    ],
)
def test_what_cannot_be_shown_safely_is_refused_with_advice(data: bytes, said: str) -> None:
    with pytest.raises(BrokenPicture) as caught:
        prepare(data)
    assert said in str(caught.value.advice)
    assert "Export the picture as PNG or JPEG" in str(caught.value.advice)


@pytest.mark.parametrize("tags", [{"Rows": 5000, "Columns": 5000}, {"NumberOfFrames": 5_000_000}])
def test_what_is_too_large_is_refused_before_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, tags: dict[str, int]
) -> None:
    def unpack(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(dicom, "pixel_array", unpack)
    with pytest.raises(BrokenPicture, match="million pixels"):
        prepare(written(**tags))


def test_a_jpeg_that_is_larger_than_the_file_says_is_refused_before_it_is_unpacked() -> None:
    jpeg = encoded(Image.new("L", (12_000, 12_000)), "JPEG")
    data = written(np.zeros((4, 4, 3)), JPEGBaseline8Bit, jpeg, PhotometricInterpretation="RGB")
    with pytest.raises(PictureBomb):
        prepare(data)


@pytest.mark.parametrize("bits", [0, 17, 4_000_000_000])
def test_a_number_of_bits_that_no_file_has_is_refused_at_once(bits: int) -> None:
    with pytest.raises(BrokenPicture, match="cannot be read"):
        dicom._largest(bits)


def test_a_table_without_its_data_counts_for_nothing() -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "UL", [4, 0, 4_000_000_000])
    shown = prepare(written(VOILUTSequence=[table]))
    assert np.asarray(Image.open(io.BytesIO(shown.png))).tolist() == [[0, 64, 128, 255]]


def test_colours_that_unfold_to_any_size_are_refused() -> None:
    with pytest.raises(BrokenPicture, match="colours"):
        prepare(written(SegmentedRedPaletteColorLookupTableData=b"\x01\x00\xff\xff\x00\x00" * 4))
