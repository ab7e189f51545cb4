//! The names that a pickle may mention. All of them are recorded, and none is called.

use crate::import::element::Element;

/// A function or class of Python that the importer gives a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::import) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch.Size`
    Size,
    /// `torch._utils._rebuild_tensor_v2`
    Tensor,
    /// `torch._utils._rebuild_parameter`
    Parameter,
    /// A storage class, e.g. `torch.BFloat16Storage`
    Storage(Element),
    /// A type of elements, e.g. `torch.bfloat16`. It occurs in notes beside the tensors.
    Dtype,
}

impl Global {
    /// Returns the meaning of a name, if it is on the list.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch", "Size") => Some(Self::Size),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::Tensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::Parameter),
            ("torch", "bfloat16" | "float16" | "float32" | "float64" | "int32" | "int64" | "bool") => {
                Some(Self::Dtype)
            }
            ("torch", name) => Element::of_storage(name).map(Self::Storage),
            _ => None,
        }
    }
}
