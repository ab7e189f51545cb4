//! Visits the tensors of a GGUF file in memory.

use axiscap::file::gguf::Gguf;

/// Calls `visit` with each one-dimensional f32 tensor's name and bytes.
pub(crate) fn visit(bytes: &mut [u8], mut visit: impl FnMut(&str, &mut [u8])) {
    let gguf = Gguf::parse(bytes).expect("a GGUF file");
    let (tensors, data) = (gguf.tensors.clone(), gguf.data_offset());
    for tensor in &tensors {
        if tensor.element_type == 0 && tensor.dimensions.len() == 1 {
            let from = (data + tensor.offset) as usize;
            visit(&tensor.name, &mut bytes[from..][..4 * tensor.dimensions[0] as usize]);
        }
    }
}
