//! The special tokens of a vocabulary, and where they are in a text.
//!
//! llama.cpp cuts a text at special tokens before it tokenizes what lies between
//! (`llama_vocab::impl::tokenizer_st_partition`). The cuts are found again here, for texts of which some parts
//! are to be cut and others are not.

use llama_cpp_2::token_type::LlamaTokenAttr as Attribute;
use llama_cpp_2::vocab::LlamaVocab;

use crate::Token;

/// One special token.
#[derive(Debug)]
struct Special {
    token: Token,
    text: String,
    /// Whether the token is found only where special tokens are asked for: a control token or the unknown
    /// token. The others (`user_defined`) are found in every text.
    is_control: bool,
    /// Whether whitespace before it, or after it, belongs to it.
    strips: (bool, bool),
}

/// The special tokens of a vocabulary, in llama.cpp's order: the longest texts first.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens(Vec<Special>);

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// A special token, and how the text has it.
    Special(Token, &'a str),
    /// Text between special tokens.
    Text(&'a str),
}

impl SpecialTokens {
    /// Reads them from a vocabulary.
    pub(crate) fn of(vocab: &LlamaVocab<'_>) -> Self {
        let special = |token: Token| {
            let attributes = vocab.attr(token);
            let is_control = attributes.intersects(Attribute::Control | Attribute::Unknown);
            if !is_control && !attributes.contains(Attribute::UserDefined) {
                return None;
            }
            let text = vocab.text(token)?.to_str().ok()?.to_owned();
            let strips = (attributes.contains(Attribute::LStrip), attributes.contains(Attribute::RStrip));
            (!text.is_empty()).then_some(Special { token, text, is_control, strips })
        };
        let mut tokens: Vec<_> = vocab.tokens().filter_map(special).collect();
        tokens.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
        Self(tokens)
    }

    /// Returns the parts of a text, as llama.cpp cuts it where special tokens are asked for: without the
    /// whitespace that belongs to a token.
    pub(crate) fn parts<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        cut(text, self.0.iter(), |special| special.strips)
    }

    /// Returns the whole text in parts, cut at the tokens that are found only where special tokens are asked
    /// for.
    pub(crate) fn control_parts<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        cut(text, self.0.iter().filter(|special| special.is_control), |_| (false, false))
    }
}

fn cut<'a, 'b>(
    text: &'a str,
    tokens: impl Iterator<Item = &'b Special>,
    strips: impl Fn(&Special) -> (bool, bool),
) -> Vec<Part<'a>> {
    let mut parts = vec![Part::Text(text)];
    for special in tokens.filter(|special| text.contains(&special.text)) {
        let parts_of = |part| match part {
            Part::Text(text) => special.cut(text, strips(special)),
            Part::Special(..) => vec![part],
        };
        parts = parts.into_iter().flat_map(parts_of).collect();
    }
    parts.retain(|part| *part != Part::Text(""));
    parts
}

impl Special {
    /// Cuts a text at each occurrence of this token, without the whitespace before or after it if asked to.
    fn cut<'a>(&self, mut text: &'a str, (before, after): (bool, bool)) -> Vec<Part<'a>> {
        // As C's isspace in the locale "C".
        let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r');
        let mut parts = Vec::new();
        while let Some(at) = text.find(&self.text) {
            let (left, rest) = text.split_at(at);
            let (found, right) = rest.split_at(self.text.len());
            let left = if before { left.trim_end_matches(is_space) } else { left };
            text = if after { right.trim_start_matches(is_space) } else { right };
            parts.extend([Part::Text(left), Part::Special(self.token, found)]);
        }
        parts.push(Part::Text(text));
        parts
    }
}
