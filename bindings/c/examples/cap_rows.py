"""Caps rows in numpy arrays with the caps of a file, and checks the projections of the capped rows itself.

    python3 cap_rows.py PREFIX/lib/libaxiscap.so lab/assets/smollm2-135m-instruct.caps.gguf

Needs numpy. The file has one cap of strength 1 per block.
"""

import ctypes
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_size_t, c_uint32, c_void_p

import numpy

OK, F32, CAP, ENGAGED = 0, 1, 1, 1
ROWS = 64

ROW_STAT = numpy.dtype([("before", "f4"), ("after", "f4"), ("flags", "u4")])


class CapsInfo(Structure):
    _fields_ = [
        ("width", c_size_t),
        ("cap_count", c_size_t),
        ("block_count", c_size_t),
        ("capped_block_count", c_size_t),
        ("skip_positions", c_uint32),
        ("architecture", c_char_p),
        ("model", c_char_p),
        ("orientation", c_char_p),
    ]


class CapInfo(Structure):
    _fields_ = [
        ("block", c_size_t),
        ("floor", c_float),
        ("ceiling", c_float),
        ("strength", c_float),
        ("norm", c_float),
        ("axis", POINTER(c_float)),
        ("name", c_char_p),
    ]


class Job(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("operation", c_uint32),
        ("dtype", c_uint32),
        ("rows", c_size_t),
        ("width", c_size_t),
        ("h", c_void_p),
        ("h_stride", c_size_t),
        ("x", c_void_p),
        ("x_stride", c_size_t),
        ("residual", c_void_p),
        ("residual_stride", c_size_t),
        ("normed", c_void_p),
        ("normed_stride", c_size_t),
        ("weight", c_void_p),
        ("epsilon", c_float),
        ("profiles", c_void_p),
        ("profile_count", c_size_t),
        ("stats", c_void_p),
        ("stat_count", c_size_t),
    ]


class Axiscap:
    """The functions of the library that this example uses. A failure becomes an exception with its message."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.axiscap_last_error.restype = c_char_p
        for name, arguments in {
            "axiscap_caps_read": [c_char_p, POINTER(c_void_p)],
            "axiscap_caps_describe": [c_void_p, POINTER(CapsInfo)],
            "axiscap_caps_get": [c_void_p, c_size_t, POINTER(CapInfo)],
            "axiscap_table_new": [POINTER(c_void_p), c_size_t, c_size_t, POINTER(c_void_p)],
            "axiscap_run": [c_void_p, POINTER(Job)],
        }.items():
            function = getattr(self.library, name)
            function.argtypes = arguments
            function.restype = c_int
            function.errcheck = self.check
        for name in ["axiscap_caps_free", "axiscap_table_free"]:
            function = getattr(self.library, name)
            function.argtypes = [c_void_p]
            function.restype = None

    def check(self, status, function, arguments):
        if status != OK:
            raise RuntimeError(self.library.axiscap_last_error().decode())
        return status

    def cap_in_place(self, table, rows, profiles):
        """Caps the rows of an array in place, each under its profile, and returns their statistics."""
        assert rows.dtype == numpy.float32 and rows.flags.writeable and rows.strides[1] == rows.itemsize
        stats = numpy.zeros(len(rows), ROW_STAT)
        job = Job(
            size=ctypes.sizeof(Job),
            operation=CAP,
            dtype=F32,
            rows=len(rows),
            width=rows.shape[1],
            h=rows.ctypes.data,
            h_stride=rows.strides[0] // rows.itemsize,
            profiles=profiles.ctypes.data,
            profile_count=len(profiles),
            stats=stats.ctypes.data,
            stat_count=len(stats),
        )
        self.library.axiscap_run(table, byref(job))
        return stats


def project(rows, axis):
    return rows.astype(numpy.float64) @ axis.astype(numpy.float64)


def check_block(axiscap, caps, cap, width):
    """Caps rows with the one cap of a block, and returns how many of them it has moved."""
    axis = numpy.ctypeslib.as_array(cap.axis, (width,))
    bound = cap.floor if numpy.isfinite(cap.floor) else cap.ceiling
    random = numpy.random.default_rng(cap.block)
    along = bound + numpy.linspace(-30, 30, ROWS)
    # Every second row of a wider array, to show a stride.
    rows = numpy.zeros((ROWS, 2, width), numpy.float32)[:, 0]
    rows[:] = random.uniform(-1, 1, (ROWS, width)) + along[:, None] * axis
    before = rows.copy()
    # The first row under profile 0, which leaves it alone, as a policy may ask for.
    profiles = numpy.ones(ROWS, numpy.uint32)
    profiles[0] = 0

    table = c_void_p()
    axiscap.library.axiscap_table_new(byref(caps), 1, cap.block, byref(table))
    try:
        stats = axiscap.cap_in_place(table, rows, profiles)
    finally:
        axiscap.library.axiscap_table_free(table)

    engaged = stats["flags"] & ENGAGED != 0
    assert not engaged[0] and 0 < engaged.sum() < ROWS
    # Rows that no cap moves keep their bytes. The others are on the bound, within the rounding of float.
    assert numpy.array_equal(before[~engaged].view(numpy.uint32), rows[~engaged].view(numpy.uint32))
    target = numpy.clip(project(before, axis), cap.floor, cap.ceiling)
    allowed = 32 * 2.0**-24 * (numpy.abs(target) + numpy.linalg.norm(rows, axis=1))
    distance = numpy.abs(project(rows, axis) - target)
    assert numpy.all(distance[engaged] <= allowed[engaged] + 2.0**-22 * numpy.abs(along[engaged]))
    assert numpy.all((stats["after"][engaged] == cap.floor) | (stats["after"][engaged] == cap.ceiling))
    return int(engaged.sum())


def main(library, path):
    axiscap = Axiscap(library)
    try:
        axiscap.library.axiscap_caps_read(b"no such file", byref(c_void_p()))
    except RuntimeError as error:
        assert "no such file" in str(error)
    else:
        raise AssertionError("a file that does not exist was read")
    caps = c_void_p()
    axiscap.library.axiscap_caps_read(path.encode(), byref(caps))
    try:
        info = CapsInfo()
        axiscap.library.axiscap_caps_describe(caps, byref(info))
        assert info.cap_count == info.capped_block_count, "this example is for one cap per block"
        print(f"{info.cap_count} caps of width {info.width} for {info.architecture.decode()}")
        for index in range(info.cap_count):
            cap = CapInfo()
            axiscap.library.axiscap_caps_get(caps, index, byref(cap))
            moved = check_block(axiscap, caps, cap, info.width)
            print(f"block {cap.block:2}, floor {cap.floor:9.4f}: {moved} of {ROWS} rows moved onto the bound")
    finally:
        axiscap.library.axiscap_caps_free(caps)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: cap_rows.py LIBAXISCAP.so CAPS.gguf")
    main(sys.argv[1], sys.argv[2])
