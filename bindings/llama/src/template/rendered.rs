//! A conversation in the markup of a template, and its tokens.
//!
//! The markup's special tokens are meant, and those that a message spells are text. A template works on plain
//! strings, so each special token in a message is replaced by one character of Unicode's private use before
//! the template runs. In what it returns, text is cut at special tokens, and only then are the characters
//! replaced by what they stand for.

use std::collections::HashSet;

use crate::Token;
use crate::error::Error;
use crate::model::Model;
use crate::special::{Part, SpecialTokens};

/// A conversation in the markup of a chat template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The text, in which characters of `hidden` stand for special tokens that messages spell.
    text: String,
    hidden: Vec<(char, String)>,
}

impl Rendered {
    pub(super) fn new(text: String, hiding: Hiding<'_>) -> Self {
        Self { text, hidden: hiding.hidden }
    }

    /// Returns the text.
    #[must_use]
    pub fn text(&self) -> String {
        self.shown(&self.text)
    }

    /// Returns the tokens: special tokens of the template as such, and those that messages spell as text.
    ///
    /// `whole` adds BOS if the model asks for it.
    ///
    /// # Errors
    /// [`Error::TextTooLong`].
    pub fn tokens(&self, model: &Model, whole: bool) -> Result<Vec<Token>, Error> {
        if self.hidden.is_empty() {
            return model.tokenize(&self.text, whole);
        }
        // Its length is checked, and it adds what the model asks for at the beginning.
        let mut tokens = model.tokenize("", whole)?;
        for part in model.special_tokens().parts(&self.text) {
            match part {
                Part::Special(token, _) => tokens.push(token),
                Part::Text(text) => tokens.extend(model.tokenize_text(&self.shown(text))?),
            }
        }
        Ok(tokens)
    }

    /// Returns what follows `beginning`, if the text begins with it.
    pub(crate) fn after(&self, beginning: &str) -> Option<Self> {
        let (mut rest, mut left) = (self.text.as_str(), beginning);
        while !left.is_empty() {
            let first = rest.chars().next()?;
            let mut buffer = [0; 4];
            let shown = self.original(first).unwrap_or_else(|| first.encode_utf8(&mut buffer));
            left = left.strip_prefix(shown)?;
            rest = &rest[first.len_utf8()..];
        }
        Some(Self { text: rest.to_owned(), hidden: self.hidden.clone() })
    }

    /// Removes `text` from the beginning, or from the end.
    pub(super) fn strip(&mut self, beginning: Option<&str>, end: Option<&str>) {
        if let Some(rest) = beginning.and_then(|text| self.text.strip_prefix(text)) {
            self.text = rest.to_owned();
        }
        if let Some(rest) = end.and_then(|text| self.text.strip_suffix(text)) {
            self.text.truncate(rest.len());
        }
    }

    fn original(&self, character: char) -> Option<&str> {
        self.hidden.iter().find(|(hidden, _)| *hidden == character).map(|(_, text)| text.as_str())
    }

    /// Returns a part of the text with what hidden characters stand for.
    fn shown(&self, part: &str) -> String {
        let mut text = String::with_capacity(part.len());
        for character in part.chars() {
            match self.original(character) {
                Some(original) => text.push_str(original),
                None => text.push(character),
            }
        }
        text
    }
}

/// Replaces special tokens in messages by characters that occur in none of the texts of a rendering.
#[derive(Debug)]
pub(super) struct Hiding<'a> {
    special: &'a SpecialTokens,
    used: HashSet<char>,
    next: u32,
    hidden: Vec<(char, String)>,
}

impl<'a> Hiding<'a> {
    /// Unicode's planes 15 and 16 are for private use.
    const FIRST: u32 = 0xf_0000;

    /// Prepares to hide special tokens. `texts` are all texts that a template gets, and its own.
    pub(super) fn new<'b>(special: &'a SpecialTokens, texts: impl IntoIterator<Item = &'b str>) -> Self {
        let is_private = |character: &char| u32::from(*character) >= Self::FIRST;
        let used = texts.into_iter().flat_map(str::chars).filter(is_private).collect();
        Self { special, used, next: Self::FIRST, hidden: Vec::new() }
    }

    /// Returns a text in which special tokens are hidden, but for those in `kept`.
    ///
    /// # Errors
    /// [`Error::PrivateUse`] if no character is left.
    pub(super) fn hide(&mut self, text: &str, kept: &[&str]) -> Result<String, Error> {
        let mut hidden = String::with_capacity(text.len());
        for part in self.special.control_parts(text) {
            match part {
                Part::Special(_, spelled) if !kept.contains(&spelled) => {
                    hidden.push(self.character(spelled)?);
                }
                Part::Special(_, text) | Part::Text(text) => hidden.push_str(text),
            }
        }
        Ok(hidden)
    }

    /// Returns the character that stands for this token.
    fn character(&mut self, spelled: &str) -> Result<char, Error> {
        if let Some((character, _)) = self.hidden.iter().find(|(_, text)| text == spelled) {
            return Ok(*character);
        }
        // The last two code points of a plane are no characters.
        let is_free = |code: &u32| code & 0xffff < 0xfffe;
        let free = (self.next..=u32::from(char::MAX)).filter(is_free).filter_map(char::from_u32);
        let character = free.into_iter().find(|character| !self.used.contains(character));
        let character = character.ok_or(Error::PrivateUse)?;
        self.next = u32::from(character) + 1;
        self.hidden.push((character, spelled.to_owned()));
        Ok(character)
    }
}
