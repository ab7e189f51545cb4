//! Texts that the user gives in files or on stdin. Their length is bounded: a device without an end must not
//! fill the memory.

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};

/// Maximum bytes of a text. It is more than the tokens of the largest context stand for.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a text file of UTF-8.
pub(crate) fn text_file(path: &Path) -> Result<String> {
    let place = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {place}"))?;
    utf8(all(file, &place.to_string())?, &place.to_string())
}

/// Reads a text to its end. `source` is where it comes from.
pub(crate) fn all(reader: impl Read, source: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed, to notice that there are more.
    let read = reader.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {source}"))?;
    check_length(&bytes, source)?;
    Ok(bytes)
}

/// Reads a line with its end. Returns `None` at the end of the text.
pub(crate) fn line(reader: &mut impl BufRead, source: &str) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_BYTES + 1).read_until(b'\n', &mut bytes);
    let read = read.with_context(|| format!("cannot read {source}"))?;
    check_length(&bytes, source)?;
    Ok((read > 0).then_some(bytes))
}

/// Returns the text that bytes from `source` are.
pub(crate) fn utf8(bytes: Vec<u8>, source: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow!("{source} is not UTF-8: byte {offset} begins no character; convert it to UTF-8")
    })
}

fn check_length(bytes: &[u8], source: &str) -> Result<()> {
    ensure!(
        bytes.len() as u64 <= MAX_BYTES,
        "{source} has more than {} MiB, which no context holds; give a shorter text",
        MAX_BYTES >> 20
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, repeat};

    use super::*;

    #[test]
    fn a_text_without_an_end_is_refused() {
        let refused = [
            all(repeat(0), "zeros").unwrap_err().to_string(),
            line(&mut BufReader::new(repeat(b'a')), "zeros").unwrap_err().to_string(),
        ];
        assert!(refused.iter().all(|text| text.contains("zeros has more than 256 MiB")), "{refused:?}");
        assert_eq!(all(&b"ab"[..], "x").unwrap(), b"ab");
        let mut lines = &b"a\nb"[..];
        let read = [(); 3].map(|()| line(&mut lines, "x").unwrap());
        assert_eq!(read, [Some(b"a\n".to_vec()), Some(b"b".to_vec()), None]);
    }
}
