//! Names, numbers and lists as a page or a chart shows them: bounded, and without a character that would
//! change what stands beside it.

use unicode_width::UnicodeWidthChar;

/// What stands for a number that was not measured.
pub(crate) const MISSING: &str = "–";

/// Returns a text cut to a number of columns, with `…` at the cut.
///
/// Characters that XML forbids, and those that turn the direction of text around them, are replaced. White
/// space becomes plain spaces.
pub(crate) fn clean(text: &str, columns: usize) -> String {
    let mut shown = String::new();
    let mut used = 0;
    for c in text.trim().chars().map(harmless) {
        // A mark without width counts as well. Thousands of them on one letter would reach other lines.
        let width = c.width().unwrap_or(0).max(1);
        if used + width > columns {
            // The last one makes room.
            if used == columns {
                shown.pop();
            }
            shown.push('…');
            break;
        }
        used += width;
        shown.push(c);
    }
    shown
}

/// Returns a name as [`clean`] does, and words in its place if it is empty.
pub(crate) fn name(text: &str, columns: usize) -> String {
    let shown = clean(text, columns);
    if shown.is_empty() { "(no name)".into() } else { shown }
}

fn harmless(c: char) -> char {
    match c {
        c if c.is_whitespace() => ' ',
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Returns a number with fixed decimals, or in scientific notation if it would be long.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        return MISSING.into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "-∞" }.into();
    }
    if value.abs() >= 1e7 {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.decimals$}");
    let zero = text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'));
    if zero { text.trim_start_matches('-').into() } else { text }
}

/// Returns whole numbers as words: `3 to 5, 9`.
pub(crate) fn ranges(numbers: impl IntoIterator<Item = usize>) -> String {
    let mut numbers: Vec<usize> = numbers.into_iter().collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
        .chunk_by(|a, b| b - a == 1)
        .map(|run| match run {
            [one] => one.to_string(),
            [first, second] => format!("{first}, {second}"),
            [first, .., last] => format!("{first} to {last}"),
            [] => String::new(),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bounded_and_harmless() {
        assert_eq!(clean(" pirate\n", 6), "pirate");
        assert_eq!(clean("pirates", 6), "pirat…");
        assert_eq!(clean("海海海", 6), "海海海");
        assert_eq!(clean("海海海海", 6), "海海…");
        assert_eq!(clean("海海海海", 5), "海海…");
        assert_eq!(clean("a\u{202e}b\0c\td\u{ffff}", 9), "a\u{fffd}b\u{fffd}c d\u{fffd}");
        assert_eq!(clean(&"\u{301}".repeat(10_000), 30).chars().count(), 30);
        assert_eq!(name("\u{2028}", 9), "(no name)");
    }

    #[test]
    fn numbers_are_short_and_never_names_of_floats() {
        assert_eq!(fixed(-0.0004, 2), "0.00");
        assert_eq!(fixed(-0.04, 2), "-0.04");
        assert_eq!(fixed(f64::NAN, 2), "–");
        assert_eq!(fixed(f64::NEG_INFINITY, 2), "-∞");
        assert_eq!(fixed(1e300, 2), "1.000e300");
    }

    #[test]
    fn whole_numbers_in_a_row_become_ranges() {
        assert_eq!(ranges([9, 4, 3, 5, 4]), "3 to 5, 9");
        assert_eq!(ranges([7, 8]), "7, 8");
        assert_eq!(ranges([]), "");
    }
}
