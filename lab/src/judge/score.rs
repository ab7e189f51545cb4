//! Finds the score in what a judge says.

use serde::Deserialize;
use serde_json::Value;

use super::{JudgeError, MAX_SCORE};

/// Maximum characters of a judge's text in a message.
const MAX_QUOTE: usize = 200;

/// Returns the beginning of a text for a message.
pub(super) fn cut(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A line of a command that is an object. It may have other fields.
#[derive(Deserialize)]
struct ScoreObject {
    score: Value,
    index: Option<Value>,
}

/// Reads the line that a command prints for the case `index`.
///
/// # Errors
/// [`JudgeError::Line`], [`JudgeError::Range`], [`JudgeError::Order`].
pub(super) fn from_line(text: &str, index: usize) -> Result<u8, JudgeError> {
    let (text, line) = (text.trim(), index + 1);
    let wrong = || JudgeError::Line { line, text: cut(text) };
    let score = if text.starts_with('{') {
        let object: ScoreObject = serde_json::from_str(text).map_err(|_| wrong())?;
        // A program that works on several answers at once may print them in another order.
        if let Some(found) = object.index.filter(|found| *found != index) {
            return Err(JudgeError::Order { line, found: cut(&found.to_string()), expected: index });
        }
        object.score
    } else {
        serde_json::from_str(text).map_err(|_| wrong())?
    };
    match score.as_u64().and_then(|score| u8::try_from(score).ok()) {
        Some(score) if score <= MAX_SCORE => Ok(score),
        _ if score.is_i64() || score.is_u64() => Err(JudgeError::Range { line, score: score.to_string() }),
        _ => Err(wrong()),
    }
}

/// Why a model's reply is not a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoScore {
    /// It has no text.
    Empty,
    /// It never leaves its thoughts.
    Unfinished,
    /// It does not hold exactly one number, or not one of the scale.
    Unclear,
}

/// Reads a model's reply: exactly one number after its thoughts, which is a score.
///
/// Another number makes the reply unclear, because either may be the score ("2/3", "5 of 10"). Digits within
/// a word with letters ("GPT-4") are no numbers.
pub(super) fn from_reply(reply: &str) -> Result<u8, NoScore> {
    let answer = reply.rsplit("</think>").next().unwrap_or_default().trim();
    if answer.contains("<think>") {
        return Err(NoScore::Unfinished);
    }
    if answer.is_empty() {
        return Err(NoScore::Empty);
    }
    let joins = |c: char| c.is_alphanumeric() || matches!(c, '.' | ',' | '-' | '–' | '−' | '+' | '/' | '%');
    let is_number = |word: &&str| word.contains(char::is_numeric) && !word.contains(char::is_alphabetic);
    // Only what ends a sentence is cut off: "-1" and ".5" are not scores.
    let words = answer.split(|c| !joins(c)).map(|word| word.trim_end_matches(['.', ',']));
    let mut numbers = words.filter(is_number);
    match (numbers.next().map(str::as_bytes), numbers.next()) {
        (Some(&[digit @ b'0'..=b'9']), None) if digit - b'0' <= MAX_SCORE => Ok(digit - b'0'),
        _ => Err(NoScore::Unclear),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_number_or_an_object_with_a_score() {
        for (text, score) in [("0", 0), (" 3 \r", 3), (r#"{"score": 2}"#, 2)] {
            assert_eq!(from_line(text, 4).unwrap(), score, "{text}");
        }
        assert_eq!(from_line(r#"{"index": 4, "score": 1, "why": ["x"]}"#, 4).unwrap(), 1);
    }

    #[test]
    fn other_lines_are_refused_with_their_number_and_text() {
        let nested = "[".repeat(10_000);
        let wrong = ["", "two", "2.0", "[2]", "\"2\"", "2 3", "null", "{\"score\": \"2\"}", "{}", "03"];
        for text in wrong.into_iter().chain([r#"{"score": 1, "score": 2}"#, &nested]) {
            let error = from_line(text, 6).unwrap_err();
            assert!(matches!(error, JudgeError::Line { line: 7, .. }), "{text}: {error}");
            assert!(error.to_string().len() < 500, "{error}");
        }
        for text in ["4", "-1", "99999999999", r#"{"score": 7}"#, "256"] {
            let error = from_line(text, 6).unwrap_err();
            assert!(matches!(error, JudgeError::Range { line: 7, .. }), "{text}: {error}");
        }
        let error = from_line(r#"{"score": 1, "index": 5}"#, 6).unwrap_err();
        assert!(matches!(error, JudgeError::Order { expected: 6, .. }), "{error}");
    }

    #[test]
    fn a_reply_with_one_number_is_a_score() {
        let replies = [
            ("2", 2),
            (" 0\n", 0),
            ("**3**", 3),
            ("Score: 2", 2),
            ("score=1.", 1),
            ("\\boxed{3}", 3),
            ("<b>1</b>", 1),
            ("I give this a 2, since GPT-4 would.", 2),
            ("- 3", 3),
            ("_0_", 0),
            ("<think>1 or 2? Perhaps 3.</think>\n\n2", 2),
            ("The scale is 0 to 3.</think>1", 1),
            ("<think>a</think><think>3</think>0", 0),
        ];
        for (reply, score) in replies {
            assert_eq!(from_reply(reply), Ok(score), "{reply}");
        }
    }

    #[test]
    fn a_reply_without_a_number_or_with_several_is_no_score() {
        let unclear =
            ["no", "4", "7", "10", "-1", "−1", "2.5", ".5", "2/3", "2 or 3", "0-3", "3x", "３", "2%"];
        for reply in unclear.into_iter().chain(["Score: 5 of 10, not 0", "2 out of 3", "2\n2", "½", "1,5"]) {
            assert_eq!(from_reply(reply), Err(NoScore::Unclear), "{reply}");
        }
        assert_eq!(from_reply("<think>2"), Err(NoScore::Unfinished));
        assert_eq!(from_reply("<think>2</think> \n"), Err(NoScore::Empty));
        assert_eq!(from_reply(" "), Err(NoScore::Empty));
    }

    #[test]
    fn quotes_are_cut_between_characters() {
        assert_eq!(cut(" short\n"), "short");
        assert_eq!(cut(&"ä".repeat(1000)).chars().count(), MAX_QUOTE + 3);
    }
}
