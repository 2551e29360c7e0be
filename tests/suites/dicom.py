"""A DICOM series in the directory of argument 1: written, read whole and in part, edited in place, indexed by a DICOMDIR."""
import pathlib
import sys

import numpy
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

SLICES, SIZE = 40, 256
root = pathlib.Path(sys.argv[1])
root.mkdir()
study, series = generate_uid(), generate_uid()
random = numpy.random.default_rng(7)
pixels = random.integers(0, 4096, (SLICES, SIZE, SIZE), dtype=numpy.uint16)


def image(n):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientID, ds.PatientName, ds.StudyID, ds.Modality = "id", "Last^First", "1", "CT"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20260101", "120000", "1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = study, series, 1, n
    ds.Rows = ds.Columns = SIZE
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = pixels[n].tobytes()
    return ds


for n in range(SLICES):
    image(n).save_as(root / f"{n:03}.dcm", enforce_file_format=True)
for n in range(SLICES):
    path = root / f"{n:03}.dcm"
    assert (pydicom.dcmread(path).pixel_array == pixels[n]).all(), path
    # Only the head, and the pixels later when they are asked for.
    assert pydicom.dcmread(path, stop_before_pixels=True).InstanceNumber == n
    assert (pydicom.dcmread(path, defer_size=1024).pixel_array == pixels[n]).all(), path
# Longer and shorter ones in the same place, and a compressed one.
for n, name in ((0, "A^" + "b" * 60), (1, "A")):
    ds = pydicom.dcmread(root / f"{n:03}.dcm")
    ds.PatientName = name
    ds.save_as(root / f"{n:03}.dcm")
    ds = pydicom.dcmread(root / f"{n:03}.dcm")
    assert ds.PatientName == name and (ds.pixel_array == pixels[n]).all()
ds = pydicom.dcmread(root / "002.dcm")
ds.compress(RLELossless)
ds.save_as(root / "002-rle.dcm")
assert (pydicom.dcmread(root / "002-rle.dcm").pixel_array == pixels[2]).all()
files = FileSet()
for n in range(3, SLICES):
    files.add(root / f"{n:03}.dcm")
files.write(root / "set")
again = FileSet(root / "set" / "DICOMDIR")
assert len(again) == SLICES - 3
assert {int(i.load().InstanceNumber) for i in again} == set(range(3, SLICES))
