//! The question of a client and the answer of a server, as the values of a tensor: one byte per f32.

use crate::host::architecture::ModelShape;

const QUESTION: &[u8; 8] = b"axiscap?";
const ANSWER: &[u8; 8] = b"axiscap!";
/// Version of the messages. An older or newer one is refused, because it would be understood in part.
const VERSION: u8 = 1;
/// The shortest message, so that an answer has room for a reason.
const MIN_BYTES: usize = 1024;
/// The longest one. A question names a few norms per block.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Norms that a question names.
const MAX_NORMS: usize = 4096;

/// What a client asks: whether the server caps this model in this way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    /// Digest of the caps ([`CapDigest`](crate::CapDigest)).
    pub(crate) caps: [u8; 32],
    /// Positions that the caps leave alone.
    pub(crate) skip_positions: u32,
    /// The model.
    pub(crate) shape: ModelShape,
    /// SHA-256 of norm weights that the server has, by the names of their tensors.
    pub(crate) norms: Vec<(String, [u8; 32])>,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It caps the model as the client does.
    Same,
    /// It does not cap the model.
    No,
    /// It caps the model, and not as the client does.
    Otherwise(String),
}

impl Question {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = begin(QUESTION);
        bytes.extend(self.caps);
        for number in [self.skip_positions as usize, self.shape.width, self.shape.blocks, self.norms.len()] {
            put_number(&mut bytes, number);
        }
        put_text(&mut bytes, &self.shape.architecture);
        for (name, digest) in &self.norms {
            put_text(&mut bytes, name);
            bytes.extend(digest);
        }
        bytes.resize(bytes.len().max(MIN_BYTES), 0);
        bytes
    }

    /// Returns the question. `None` for a message that is none, or is one of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Reader::of(bytes, QUESTION)?;
        let caps = bytes.digest()?;
        let skip_positions = u32::try_from(bytes.number()?).ok()?;
        let (width, blocks, norms) = (bytes.number()?, bytes.number()?, bytes.number()?);
        let shape = ModelShape { architecture: bytes.text()?, blocks, width };
        if norms > MAX_NORMS {
            return None;
        }
        let norms = (0..norms).map(|_| Some((bytes.text()?, bytes.digest()?))).collect::<Option<_>>()?;
        Some(Self { caps, skip_positions, shape, norms })
    }
}

impl Answer {
    /// Returns a message of at most `room` bytes.
    pub(super) fn encode(&self, room: usize) -> Vec<u8> {
        let (code, reason) = match self {
            Self::Same => (1, ""),
            Self::No => (2, ""),
            Self::Otherwise(reason) => (3, &**reason),
        };
        let mut bytes = begin(ANSWER);
        bytes.push(code);
        let fits = room.saturating_sub(bytes.len() + size_of::<u32>()).min(reason.len());
        let end = (0..=fits).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
        put_text(&mut bytes, &reason[..end]);
        bytes
    }

    /// Returns the answer. `None` for a message that is none, or is one of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Reader::of(bytes, ANSWER)?;
        match (bytes.take(1)?[0], bytes.text()?) {
            (1, _) => Some(Self::Same),
            (2, _) => Some(Self::No),
            (3, reason) => Some(Self::Otherwise(reason)),
            _ => None,
        }
    }
}

/// Returns the values of a tensor that holds a message.
pub(super) fn to_values(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|&byte| byte.into()).collect()
}

/// Returns the message of a tensor. `None` if its values are no bytes.
pub(super) fn from_values(values: &[f32]) -> Option<Vec<u8>> {
    let byte = |&value: &f32| {
        // A cast saturates, and turns NaN into zero.
        let byte = value as u8;
        (f32::from(byte) == value).then_some(byte)
    };
    values.iter().map(byte).collect()
}

fn begin(magic: &[u8; 8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.push(VERSION);
    bytes
}

fn put_number(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len());
    bytes.extend(text.as_bytes());
}

/// The part of a message that is not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Returns what follows the first bytes and the version.
    fn of(bytes: &'a [u8], magic: &[u8; 8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(magic)?;
        Some(Self(bytes.strip_prefix(&[VERSION])?))
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(size_of::<u32>())?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    }

    fn digest(&mut self) -> Option<[u8; 32]> {
        self.take(32)?.try_into().ok()
    }

    fn text(&mut self) -> Option<String> {
        let count = self.number()?;
        String::from_utf8(self.take(count)?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            caps: std::array::from_fn(|i| 7 * i as u8),
            skip_positions: 3,
            shape: ModelShape { architecture: "llama".into(), blocks: 30, width: 576 },
            norms: vec![("output_norm.weight".into(), [1; 32]), ("blk.7.attn_norm.weight".into(), [255; 32])],
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let bytes = question().encode();
        let values = to_values(&bytes);
        assert_eq!(from_values(&values).as_deref(), Some(&*bytes));
        assert_eq!(Question::decode(&bytes), Some(question()));
        for answer in [Answer::Same, Answer::No, Answer::Otherwise("other caps".into())] {
            let mut bytes = answer.encode(MIN_BYTES);
            assert_eq!(Answer::decode(&bytes), Some(answer));
            bytes[8] += 1;
            assert_eq!(Answer::decode(&bytes), None, "another version");
        }
        assert_eq!(Answer::decode(&question().encode()), None);
    }

    #[test]
    fn a_reason_is_cut_to_the_room_between_characters() {
        let answer = Answer::Otherwise("ääää".into());
        for room in 14..24 {
            let bytes = answer.encode(room);
            assert!(bytes.len() <= room, "{} {room}", bytes.len());
            let Some(Answer::Otherwise(reason)) = Answer::decode(&bytes) else { panic!("{bytes:?}") };
            assert!("ääää".starts_with(&reason));
        }
    }

    #[test]
    fn damaged_messages_are_none() {
        let bytes = question().encode();
        let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
        for cut in 0..=end {
            assert_eq!(Question::decode(&bytes[..cut]), None, "{cut}");
        }
        // A length of four billion.
        let mut long = bytes.clone();
        long[9 + 32 + 16..][..4].fill(255);
        assert_eq!(Question::decode(&long), None);
        let mut norms = bytes.clone();
        norms[9 + 32 + 12..][..4].fill(255);
        assert_eq!(Question::decode(&norms), None);
        for value in [0.5, -1.0, 256.0, f32::NAN, f32::INFINITY] {
            assert_eq!(from_values(&[1.0, value]), None, "{value}");
        }
    }
}
