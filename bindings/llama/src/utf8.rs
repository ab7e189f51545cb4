//! Text from tokens: a character may be spread over several of them.

/// Assembles the bytes of tokens into whole characters.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    pending: Vec<u8>,
}

impl Utf8 {
    /// Takes the bytes of one token and returns the characters that are complete. Bytes that cannot become a
    /// character turn into U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest: &[u8] = &self.pending;
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = tail;
                    match error.error_len() {
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[bad..];
                        }
                        None => break,
                    }
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        text
    }

    /// Returns what is left when no token follows: at most one unfinished character, as U+FFFD.
    pub(crate) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_gives_the_same_text() {
        let text = "naïve 日本 🦭!";
        for step in 1..=5 {
            let mut utf8 = Utf8::default();
            let mut out: String = text.as_bytes().chunks(step).map(|bytes| utf8.push(bytes)).collect();
            assert_eq!(utf8.finish(), "");
            out.push_str(&utf8.finish());
            assert_eq!(out, text, "step {step}");
        }
    }

    #[test]
    fn broken_bytes_are_replaced_as_std_does() {
        for bytes in
            [&b"a\xffb"[..], b"\xf0\x9f", b"\xc3\x28", b"\xe2\x82", b"\xed\xa0\x80x", b"\xf0\x9f\x92z"]
        {
            for step in 1..=bytes.len() {
                let mut utf8 = Utf8::default();
                let mut out: String = bytes.chunks(step).map(|bytes| utf8.push(bytes)).collect();
                out.push_str(&utf8.finish());
                assert_eq!(out, String::from_utf8_lossy(bytes), "{bytes:x?} in steps of {step}");
            }
        }
    }
}
