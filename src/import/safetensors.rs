//! Vectors in a safetensors file, and the bounds that axiscap writes beside them.

use std::collections::BTreeMap;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::{Dtype, TensorInfo};

use crate::file::{Result, invalid};
use crate::import::element::Element;
use crate::import::problem::{malformed, quoted, unsupported};
use crate::import::tensor::Tensor;
use crate::import::vectors::{Vectors, layer_of_name};

/// A file's tensors, and where their data begin.
struct File<'a> {
    bytes: &'a [u8],
    start: usize,
}

/// Whether bytes begin like a safetensors file: the length of a JSON object, and the object.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}

/// Reads a file: one vector per layer, as rows of one tensor, or as tensors whose names hold the layer.
///
/// One tensor is taken if it is alone or called `axis`, `assistant_axis` or `vector`. With a tensor `block` of
/// int64 beside it, its rows are on those blocks instead of 0, 1, 2 and so on. Returns as well whether there
/// are bounds beside the vectors, which are not read.
pub(super) fn parse(bytes: &[u8]) -> Result<(Vectors, bool)> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| malformed("safetensors header", "a valid file", quoted(&error.to_string())))?;
    // The header's length is that of a part of the file.
    let file = File { bytes, start: header + 8 };
    let tensors: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
    let bounds = ["floor", "ceiling"].iter().any(|&name| tensors.contains_key(name));
    let named = ["axis", "assistant_axis", "vector"].iter().find_map(|&name| tensors.get_key_value(name));
    let only =
        tensors.first_key_value().filter(|(name, _)| tensors.len() == 1 && layer_of_name(name).is_none());
    if let Some((name, info)) = named.or(only) {
        let rows = file.tensor(name, info)?.rows(&field(name))?;
        let vectors = match tensors.get("block") {
            None => Vectors::of_rows(rows)?,
            Some(info) => Vectors::numbered(file.blocks(info, rows.len())?.into_iter().zip(rows))?,
        };
        return Ok((vectors, bounds));
    }
    let mut rows = Vec::new();
    for (name, info) in &tensors {
        let layer = layer_of_name(name).ok_or_else(|| {
            let expected = "axis, assistant_axis, vector, or a layer's number as in layer_46";
            let remedy = "rename the tensors, or save those of the axis alone";
            unsupported("tensor name", expected, quoted(name), remedy)
        })?;
        rows.push((layer, file.tensor(name, info)?.vector(&field(name))?));
    }
    Ok((Vectors::numbered(rows)?, bounds))
}

fn field(name: &str) -> String {
    format!("tensor {}", quoted(name))
}

impl File<'_> {
    fn tensor(&self, name: &str, info: &TensorInfo) -> Result<Tensor> {
        let field = field(name);
        let element = match info.dtype {
            Dtype::BF16 => Element::Bf16,
            Dtype::F16 => Element::F16,
            Dtype::F32 => Element::F32,
            Dtype::F64 => Element::F64,
            other => {
                let expected = "BF16, F16, F32 or F64";
                return Err(invalid(
                    field,
                    expected,
                    format!("{other:?}"),
                    "convert the tensor with .float()",
                ));
            }
        };
        let shape = info.shape.clone();
        let strides = Tensor::contiguous(&shape)
            .ok_or_else(|| malformed(&*field, "a shape that fits memory", format!("{shape:?}")))?;
        // The reader has compared the places with each other, with the types, and with the file's length.
        let (start, end) = info.data_offsets;
        Tensor::new(&field, element, &(self.start + start..self.start + end), 0, shape, strides)
    }

    fn blocks(&self, info: &TensorInfo, count: usize) -> Result<Vec<i64>> {
        let (start, end) = info.data_offsets;
        let data = self.bytes.get(self.start + start..self.start + end).unwrap_or_default();
        let (numbers, rest) = data.as_chunks::<8>();
        if info.dtype != Dtype::I64 || numbers.len() != count || !rest.is_empty() {
            let found = format!("{:?} {:?}", info.dtype, info.shape);
            return Err(invalid(
                field("block"),
                format!("{count} of I64, one per row"),
                found,
                "save it again",
            ));
        }
        Ok(numbers.iter().map(|&number| i64::from_le_bytes(number)).collect())
    }
}
