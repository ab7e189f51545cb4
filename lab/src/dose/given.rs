//! Texts that a model reads: cut into pieces that it can be asked to predict.

use axiscap_llama::{Model, Token};

use crate::error::Error;
use crate::pass::Text;

/// Maximum tokens of a piece, as many as llama.cpp's perplexity has by default.
const PIECE: usize = 512;

/// A text that a model reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenText {
    /// What it is called in reports.
    pub name: String,
    /// Its pieces, at least one.
    pub pieces: Vec<Piece>,
}

/// A piece of a text. The first tokens are given, and the others are predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    first: Vec<i32>,
    rest: Vec<i32>,
}

impl GivenText {
    /// Cuts a text into pieces of at most 512 tokens, or what the model was trained on if that is less, and keeps the
    /// first `pieces` of them. Each begins with BOS if the model asks for it.
    ///
    /// # Errors
    /// [`Error::NoTokens`] for a text without a token to be predicted. [`Error::Llama`] for one that is too long.
    pub fn cut(model: &Model, name: &str, text: &str, pieces: usize) -> Result<Self, Error> {
        let tokens = model.tokenize_text(text)?;
        // What the model puts before a text.
        let begin = model.tokenize("", true)?;
        let trained = usize::try_from(model.trained_context()).ok().filter(|&trained| trained > 0);
        let piece = PIECE.min(trained.unwrap_or(PIECE)).saturating_sub(begin.len()).max(2);
        let ids = |tokens: &[Token]| tokens.iter().map(|token| token.0).collect::<Vec<_>>();
        let cut = |piece: &[Token]| {
            let given = usize::from(begin.is_empty());
            let (first, rest) = piece.split_at(given);
            Piece { first: ids(&[&begin, first].concat()), rest: ids(rest) }
        };
        let cut = tokens.chunks(piece).map(cut).filter(|piece| !piece.rest.is_empty());
        let pieces: Vec<_> = cut.take(pieces).collect();
        if pieces.is_empty() {
            return Err(Error::NoTokens { name: name.into() });
        }
        Ok(Self { name: name.into(), pieces })
    }

    /// Returns the built-in texts, of each the first `pieces`: prose, science and code (`lab/assets/texts`). A text that has no
    /// tokens in the model's vocabulary is left out.
    ///
    /// # Errors
    /// [`Error::Llama`].
    pub fn builtin(model: &Model, pieces: usize) -> Result<Vec<Self>, Error> {
        let texts = [
            ("prose", include_str!("../../assets/texts/prose.txt")),
            ("science", include_str!("../../assets/texts/science.txt")),
            ("code", include_str!("../../assets/texts/code.txt")),
        ];
        let cut = texts.into_iter().map(|(name, text)| Self::cut(model, name, text, pieces));
        cut.filter(|text| !matches!(text, Err(Error::NoTokens { .. }))).collect()
    }
}

impl Piece {
    pub(super) fn text(&self) -> Text<'_> {
        Text { prompt: &self.first, response: &self.rest }
    }

    /// Returns the tokens that are given, and those that are predicted.
    pub(crate) fn tokens(&self) -> (&[i32], &[i32]) {
        (&self.first, &self.rest)
    }
}
