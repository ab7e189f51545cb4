//! Digests of norm weights, which name the model that a cap file is for.
//!
//! The weights of norms are vectors of F32 in every GGUF of a model, whatever the type of its other weights.
//! A digest of them is therefore the same in every quantisation, and another one in another model.

use std::collections::HashSet;
use std::fmt;

use crate::file::error::{FileError, Result};
use crate::file::fields::{Fields, MAKE_AGAIN, invalid};
use crate::file::gguf::{MAX_TENSOR_NAME_BYTES, Value};
use crate::file::keys::{MODEL_NORM_DIGEST, MODEL_NORM_SHA256, MODEL_NORM_TENSOR};

/// The tensor of a digest that stands alone under `axiscap.model.norm_digest`.
const OUTPUT_NORM: &str = "output_norm.weight";

/// The digest of one norm of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormDigest {
    /// The tensor's name in the model's GGUF, e.g. `output_norm.weight`.
    pub tensor: String,
    /// The SHA-256 of its weights, each as the four bytes of a little-endian f32.
    pub sha256: [u8; 32],
}

/// Writes the digest as 64 lower-case hexadecimal digits.
impl fmt::Display for NormDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Takes the digests of a file. There are none if the file has none of their keys.
pub(super) fn take(fields: &mut Fields) -> Result<Vec<NormDigest>> {
    let first: Option<String> = fields.take(MODEL_NORM_DIGEST)?;
    let tensors: Option<Vec<String>> = fields.take(MODEL_NORM_TENSOR)?;
    let digests: Option<Vec<String>> = fields.take(MODEL_NORM_SHA256)?;
    let first = match (first, &tensors, &digests) {
        (Some(first), ..) => first,
        (None, None, None) => return Ok(Vec::new()),
        (None, ..) => {
            let expected = format!("a value of type string, as in {MODEL_NORM_SHA256}[0]");
            return Err(invalid(MODEL_NORM_DIGEST, expected, "no such key", MAKE_AGAIN));
        }
    };
    let sha256 = parse(&first).ok_or_else(|| no_digest(MODEL_NORM_DIGEST.into(), &first))?;
    let columns = match (tensors, digests) {
        (None, None) => return Ok(vec![NormDigest { tensor: OUTPUT_NORM.into(), sha256 }]),
        (Some(tensors), Some(digests)) => (tensors, digests),
        (None, Some(_)) => return Err(missing(MODEL_NORM_TENSOR)),
        (Some(_), None) => return Err(missing(MODEL_NORM_SHA256)),
    };
    let norms = pairs(columns)?;
    match norms.first() {
        Some(norm) if norm.sha256 == sha256 => Ok(norms),
        Some(norm) => {
            let expected = format!("{norm}, as {MODEL_NORM_SHA256}[0]");
            Err(invalid(MODEL_NORM_DIGEST, expected, first, MAKE_AGAIN))
        }
        None => Err(invalid(MODEL_NORM_TENSOR, "at least one tensor", "none", MAKE_AGAIN)),
    }
}

/// Refuses names that a file may not hold.
pub(super) fn check(norms: &[NormDigest]) -> Result<()> {
    let mut seen = HashSet::new();
    for (index, NormDigest { tensor, .. }) in norms.iter().enumerate() {
        let found = match tensor.len() {
            0 => "an empty name".into(),
            length if length > MAX_TENSOR_NAME_BYTES => format!("{length} bytes"),
            _ if seen.insert(tensor) => continue,
            _ => format!("{tensor:?} twice"),
        };
        let expected = format!("distinct names of 1 to {MAX_TENSOR_NAME_BYTES} bytes");
        return Err(invalid(format!("{MODEL_NORM_TENSOR}[{index}]"), expected, found, MAKE_AGAIN));
    }
    Ok(())
}

/// Pairs the names of tensors with their digests.
fn pairs((tensors, digests): (Vec<String>, Vec<String>)) -> Result<Vec<NormDigest>> {
    if digests.len() != tensors.len() {
        let expected = format!("{} values, one per tensor of {MODEL_NORM_TENSOR}", tensors.len());
        return Err(invalid(MODEL_NORM_SHA256, expected, format!("{} values", digests.len()), MAKE_AGAIN));
    }
    let pair = |(index, (tensor, digest)): (usize, (String, String))| {
        let sha256 =
            parse(&digest).ok_or_else(|| no_digest(format!("{MODEL_NORM_SHA256}[{index}]"), &digest))?;
        Ok(NormDigest { tensor, sha256 })
    };
    let norms = tensors.into_iter().zip(digests).enumerate().map(pair).collect::<Result<Vec<_>>>()?;
    check(&norms)?;
    Ok(norms)
}

/// Returns the bytes of 64 lower-case hexadecimal digits. A digest has one spelling.
fn parse(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Vec<u8> =
        pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn no_digest(field: String, found: &str) -> FileError {
    let found = Value::from(found).summary();
    invalid(field, "a SHA-256 as 64 lower-case hexadecimal digits", found, MAKE_AGAIN)
}

fn missing(key: &str) -> FileError {
    invalid(key, "a value of type array of string", "no such key", MAKE_AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_spelling() {
        let norm = NormDigest { tensor: OUTPUT_NORM.into(), sha256: std::array::from_fn(|i| 7 * i as u8) };
        let text = norm.to_string();
        assert_eq!((text.len(), &text[..6]), (64, "00070e"));
        assert_eq!(parse(&text), Some(norm.sha256));
        for wrong in ["", "0", &text[1..], &text[2..], &text.to_uppercase(), &text.replacen('0', "g", 1)] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse(&format!("{text}00")), None);
    }
}
