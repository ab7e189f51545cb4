//! What a call returns.

/// What a call returns. The numbers do not change within a version of the interface, and later versions may
/// add to them.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// The call did what it should.
    Ok = 0,
    /// A pointer is NULL that must not be.
    NullPointer = 1,
    /// A pointer is not aligned for what it points to.
    Misaligned = 2,
    /// Lengths or strides overflow the address space.
    Overflow = 3,
    /// A number is none of the constants that are meant, or fields of a job contradict each other.
    InvalidArgument = 4,
    /// Widths differ that must be equal, or are 0.
    Width = 5,
    /// A stride is smaller than the width.
    Stride = 6,
    /// The number of profiles or statistics is wrong.
    Count = 7,
    /// A row asks for a profile that the table does not have.
    Profile = 8,
    /// A bound is NaN, or no projection is within the bounds.
    Bound = 9,
    /// A strength is not from 0 to 1.
    Strength = 10,
    /// An epsilon is negative, infinite or NaN.
    Epsilon = 11,
    /// An index names no cap.
    NoSuchCap = 12,
    /// There is no cap on the block.
    NoCaps = 13,
    /// More caps, profiles or rows than a table or a launch takes.
    TooMany = 14,
    /// The caller's array is too short.
    TooShort = 15,
    /// The system could not read a file.
    Io = 16,
    /// The bytes are no GGUF file: cut short, damaged, or of another format.
    Malformed = 17,
    /// A file of a version or kind that this library does not know.
    Unsupported = 18,
    /// A field of a file is missing, or holds a value that it cannot have.
    InvalidFile = 19,
    /// A control vector without bounds, where caps are needed.
    ControlVector = 20,
    /// The caps are for a model of another width or another number of blocks.
    OtherModel = 21,
    /// The library was built without its feature `cuda`.
    NoCuda = 22,
    /// The NVIDIA driver's library cannot be loaded.
    NoDriver = 23,
    /// The driver shows no such GPU.
    NoDevice = 24,
    /// The driver is older than the toolkit that compiled the kernels.
    DriverTooOld = 25,
    /// The library holds no code that runs on this GPU.
    NoDeviceCode = 26,
    /// A call of the driver failed, perhaps because of earlier work on the GPU.
    Driver = 27,
    /// The stream is being captured, and the call cannot be part of a graph.
    Capturing = 28,
    /// A table has another shape than the one that it should replace.
    TableShape = 29,
    /// A fault of the library. Please report it with the message.
    Internal = 30,
}
