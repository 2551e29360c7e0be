"""NIfTI volumes in the directory of argument 1: plain and compressed, mapped into memory, sliced, edited through a mapping."""
import pathlib
import sys

import nibabel
import numpy

root = pathlib.Path(sys.argv[1])
root.mkdir()
data = numpy.random.default_rng(7).integers(-1000, 3000, (96, 96, 60, 4), dtype=numpy.int16)
image = nibabel.Nifti1Image(data, numpy.diag([2, 2, 3, 1]))
for name in ("plain.nii", "packed.nii.gz", "pair.img"):
    nibabel.save(image, root / name)
    back = nibabel.load(root / name)
    assert (numpy.asarray(back.dataobj) == data).all(), name
    # One volume and one line of the others, without the rest.
    assert (numpy.asarray(back.dataobj[..., 2]) == data[..., 2]).all(), name
    assert (numpy.asarray(back.dataobj[17, :, 30, 1]) == data[17, :, 30, 1]).all(), name
mapped = nibabel.load(root / "plain.nii", mmap="c")
assert isinstance(mapped.dataobj.get_unscaled(), numpy.memmap)
offset = mapped.dataobj.offset
del mapped
edit = numpy.memmap(root / "plain.nii", dtype="<i2", mode="r+", offset=offset, shape=data.shape, order="F")
edit[10:20, :, 5, :] = 77
edit.flush()
del edit
data[10:20, :, 5, :] = 77
assert (numpy.asarray(nibabel.load(root / "plain.nii", mmap=False).dataobj) == data).all()
