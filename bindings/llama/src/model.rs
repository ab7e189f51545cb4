//! A loaded model: weights, vocabulary, chat template.

use std::ffi::CStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use axiscap::file::NormDigest;
use axiscap_ggml::ModelShape;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_sys_2 as sys;

use crate::Token;
use crate::backend;
use crate::error::{Error, LoadFailure};
use crate::log;
use crate::special::SpecialTokens;
use crate::split;
use crate::utf8::Utf8;

/// How to load a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelOptions {
    /// Layers to put on a GPU. `None` leaves it to llama.cpp, which puts all of them there if it sees one.
    pub gpu_layers: Option<u32>,
}

/// A model in memory. Shared by any number of contexts, from any thread.
#[derive(Debug)]
pub struct Model {
    llama: LlamaModel,
    path: PathBuf,
    files: Vec<PathBuf>,
    options: ModelOptions,
    shape: ModelShape,
    name: Option<String>,
    file_type: Option<String>,
    trained_context: u32,
    special: OnceLock<SpecialTokens>,
    norms: OnceLock<Option<Vec<NormDigest>>>,
}

/// Architectures that predict no token of a text: those that run without a KV cache, need the output of an
/// encoder or of another model first, or compute embeddings or audio.
const NOT_CAUSAL: [&str; 24] = [
    "bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "modern-bert",
    "gemma-embedding",
    "wavtokenizer-dec",
    "dream",
    "llada",
    "llada-moe",
    "rnd1",
    "clef",
    "t5",
    "t5encoder",
    "eagle3",
    "dflash",
    "clip",
    "gemma4-assistant",
    "llama-embed",
    "pockettts",
    "qwen3tts",
];

impl Model {
    /// Loads a GGUF file, or a model that is split over several: from any of them, with the others beside it.
    ///
    /// # Errors
    /// [`Error::ModelFile`], [`Error::ModelPath`], [`Error::ModelLoad`] with llama.cpp's own words,
    /// [`Error::NotGenerative`]. For a split model [`Error::SplitMissing`], [`Error::SplitName`],
    /// [`Error::SplitStranger`].
    pub fn load(path: impl AsRef<Path>, options: &ModelOptions) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut params = LlamaModelParams::default();
        if let Some(layers) = options.gpu_layers {
            params = params.with_n_gpu_layers(layers);
        }
        let (llama, files) = open(path, &params)?;
        let model = Self {
            shape: shape(&llama),
            name: text(&llama, "general.name"),
            file_type: file_type(&llama).map(file_type_name),
            trained_context: llama.n_ctx_train(),
            path: path.to_owned(),
            files,
            options: options.clone(),
            special: OnceLock::new(),
            norms: OnceLock::new(),
            llama,
        };
        model.check_generative()?;
        Ok(model)
    }

    /// Refuses models that cannot generate. llama.cpp would abort the process when asked to.
    fn check_generative(&self) -> Result<(), Error> {
        let architecture = &self.shape.architecture;
        let causal = self.llama.meta_val_str(&format!("{architecture}.attention.causal"));
        let tokenizer = self.llama.meta_val_str("tokenizer.ggml.model");
        let reason = if NOT_CAUSAL.contains(&architecture.as_str())
            || causal.is_ok_and(|value| value == "false")
        {
            "it is an encoder, embedding, draft, audio or diffusion model, which does not predict the next token of a text"
        } else if tokenizer.map_or(true, |name| name == "no_vocab" || name == "none")
            || self.vocab_size() == 0
        {
            "the file holds no tokenizer"
        } else if architecture == "chameleon" {
            "llama.cpp aborts where a pass over it has no logits (`chameleon.cpp`, `ggml_set_1d`)"
        } else {
            return Ok(());
        };
        Err(Error::NotGenerative { path: self.path.clone(), architecture: architecture.clone(), reason })
    }

    /// Returns whether the model keeps a state of a sequence in the place of rows (recurrent and hybrid
    /// models). Such a state cannot be cut.
    #[must_use]
    pub fn keeps_state(&self) -> bool {
        self.llama.is_recurrent() || self.llama.is_hybrid()
    }

    /// Returns the digests of [`Model::norms`] as they were at the first call. `None` if they could not be read then.
    pub(crate) fn norms_at_first(&self) -> Option<&[NormDigest]> {
        self.norms.get_or_init(|| self.norms().ok()).as_deref()
    }

    /// Returns how many rows a block with a sliding window attends to. Of models that do not say it, no row can be
    /// done without.
    pub(crate) fn window(&self) -> usize {
        let window = self.metadata(&format!("{}.attention.sliding_window", self.shape().architecture));
        window.and_then(|window| window.parse().ok()).filter(|&window| window > 0).unwrap_or(usize::MAX)
    }

    /// Returns whether llama.cpp computes one token of one sequence at a time of this model, and aborts the
    /// process on more (`plm.cpp`: its values have two dimensions, of which the KV cache takes the second for
    /// heads). A context then has micro-batches of one row.
    #[must_use]
    pub fn is_one_token_at_a_time(&self) -> bool {
        self.shape.architecture == "plm"
    }

    /// Returns architecture, number of blocks, and width of the residual stream.
    #[must_use]
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Returns the path that the model was loaded from, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the files that the model was loaded from, the first one first. One, unless it is split.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns the options that the model was loaded with.
    #[must_use]
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// Returns `general.name`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns how the weights are stored, in llama.cpp's words, e.g. `Q4_1`.
    #[must_use]
    pub fn file_type(&self) -> Option<&str> {
        self.file_type.as_deref()
    }

    /// Returns how many tokens of context the model was trained on.
    #[must_use]
    pub fn trained_context(&self) -> u32 {
        self.trained_context
    }

    /// Returns the largest context that rotates positions as a context of `longest` tokens does, if there is
    /// a limit.
    ///
    /// Some models (longrope) rotate positions otherwise in contexts above a certain size, whatever the
    /// length of the text. `None` for other models, and for texts longer than that size.
    #[must_use]
    pub fn rope_limit(&self, longest: usize) -> Option<usize> {
        let key = format!("{}.rope.scaling.original_context_length", self.shape.architecture);
        rope_limit(self.llama.meta_val_str(&key).ok()?.parse().ok()?, longest)
    }

    /// Returns the number of tokens of the vocabulary, which is the length of a row of logits.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        usize::try_from(self.llama.n_vocab()).unwrap_or(0)
    }

    /// Returns the bytes of all tensors.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.llama.size()
    }

    /// Returns a metadata value of the GGUF as text, e.g. of `tokenizer.chat_template`.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.llama.meta_val_str(key).ok()
    }

    /// Returns the tokens of a text. Special tokens written in it (`<|im_start|>`) are parsed as such.
    ///
    /// `whole` adds BOS if the model asks for it: the text is a prompt from its beginning. EOS or a
    /// separator, which some models ask for at the end, is never added, because the model is to continue the
    /// prompt.
    ///
    /// # Errors
    /// [`Error::TextTooLong`].
    pub fn tokenize(&self, text: &str, whole: bool) -> Result<Vec<Token>, Error> {
        let vocab = self.llama.vocab();
        let mut tokens = self.tokens(text, whole, true)?;
        // llama.cpp adds these only together with BOS. An EOS that ends the text itself stays.
        // Only tokenizers named `bert` end with a separator (llama.cpp's `LLAMA_VOCAB_TYPE_WPM`).
        // `LlamaVocab::vocab_type` panics on types that it does not know.
        let added = if self.metadata("tokenizer.ggml.model").as_deref() == Some("bert") {
            Some(vocab.sep())
        } else {
            vocab.should_add_eos().then(|| vocab.eos())
        };
        if whole && added.is_some() && tokens.last().copied() == added {
            tokens.pop();
        }
        Ok(tokens)
    }

    /// Returns the tokens of a text as it is read: what spells a control token is text. Nothing is added.
    ///
    /// # Errors
    /// [`Error::TextTooLong`].
    pub fn tokenize_text(&self, text: &str) -> Result<Vec<Token>, Error> {
        self.tokens(text, false, false)
    }

    fn tokens(&self, text: &str, whole: bool, special: bool) -> Result<Vec<Token>, Error> {
        // llama.cpp counts bytes and tokens in an i32, and may add a few tokens.
        const MAX: usize = (i32::MAX / 2) as usize;
        if text.len() > MAX {
            return Err(Error::TextTooLong { bytes: text.len(), max: MAX });
        }
        Ok(self.llama.vocab().tokenize(text.as_bytes(), whole, special))
    }

    /// Returns the special tokens of the vocabulary.
    pub(crate) fn special_tokens(&self) -> &SpecialTokens {
        self.special.get_or_init(|| SpecialTokens::of(&self.llama.vocab()))
    }

    /// Returns how BOS and EOS are written, for those that the vocabulary has.
    pub(crate) fn written_ends(&self) -> (Option<String>, Option<String>) {
        let vocab = self.llama.vocab();
        let written = |token| String::from_utf8(self.bytes(token, true)).ok().filter(|text| !text.is_empty());
        (written(vocab.bos()), written(vocab.eos()))
    }

    /// Returns whether a prompt begins with two BOS tokens, of which this model's tokenizer added one. The
    /// text has the other: it was written there, or a chat template did so. Models are trained on one.
    #[must_use]
    pub fn begins_with_two_bos(&self, prompt: &[Token]) -> bool {
        let vocab = self.llama.vocab();
        let bos = vocab.bos();
        vocab.should_add_bos() && matches!(prompt, [first, second, ..] if *first == bos && *second == bos)
    }

    /// Returns the bytes a token stands for, none for control tokens. A character may be spread over several
    /// tokens.
    #[must_use]
    pub fn piece(&self, token: Token) -> Vec<u8> {
        self.bytes(token, false)
    }

    /// Returns the text of tokens. Bytes that form no character become U+FFFD.
    #[must_use]
    pub fn detokenize(&self, tokens: &[Token]) -> String {
        self.text(tokens, false)
    }

    /// Returns the text of tokens with that of special tokens. Bytes that form no character become U+FFFD.
    #[must_use]
    pub fn written(&self, tokens: &[Token]) -> String {
        self.text(tokens, true)
    }

    fn text(&self, tokens: &[Token], special: bool) -> String {
        let mut utf8 = Utf8::default();
        let mut text: String = tokens.iter().map(|&token| utf8.push(&self.bytes(token, special))).collect();
        text.push_str(&utf8.finish());
        text
    }

    /// Returns the bytes that a token stands for, none for one that the vocabulary does not have.
    fn bytes(&self, token: Token, special: bool) -> Vec<u8> {
        if !self.has_token(token) {
            return Vec::new();
        }
        self.llama.vocab().token_to_piece(token, special, None)
    }

    /// Returns whether the token ends generation (end of sequence, end of turn, ...).
    #[must_use]
    pub fn ends_generation(&self, token: Token) -> bool {
        self.llama.vocab().is_eog(token)
    }

    /// Returns whether the vocabulary has this token.
    #[must_use]
    pub fn has_token(&self, token: Token) -> bool {
        usize::try_from(token.0).is_ok_and(|id| id < self.vocab_size())
    }

    /// Returns the model of `llama-cpp-2`, for what this crate does not cover.
    #[must_use]
    pub fn llama(&self) -> &LlamaModel {
        &self.llama
    }
}

/// Has llama.cpp load a model. Returns its files too, the first one first.
pub(crate) fn open(path: &Path, params: &LlamaModelParams) -> Result<(LlamaModel, Vec<PathBuf>), Error> {
    check_readable(path)?;
    if path.to_str().is_none_or(|path| path.contains('\0')) {
        return Err(Error::ModelPath(path.to_owned()));
    }
    let backend = backend::llama();
    let files = split::files(path)?;
    let first = files.first().map_or(path, PathBuf::as_path);
    let (loaded, complaints) = log::capture(|| LlamaModel::load_from_file(backend, first, params));
    let llama = loaded.map_err(|_| {
        let reason = complaints.reason();
        Error::ModelLoad { path: path.to_owned(), cause: LoadFailure::of(&reason), reason }
    })?;
    Ok((llama, files))
}

/// Returns a metadata value as text, `None` if it is empty.
pub(crate) fn text(llama: &LlamaModel, key: &str) -> Option<String> {
    llama.meta_val_str(key).ok().filter(|value| !value.is_empty())
}

pub(crate) fn shape(llama: &LlamaModel) -> ModelShape {
    ModelShape {
        blocks: llama.n_layer() as usize,
        width: usize::try_from(llama.n_embd()).unwrap_or(0),
        architecture: text(llama, "general.architecture").unwrap_or_default(),
    }
}

/// Returns `general.file_type`.
pub(crate) fn file_type(llama: &LlamaModel) -> Option<u32> {
    text(llama, "general.file_type")?.parse().ok()
}

/// Opens the file and reads a byte, which tells a missing file, a directory and missing rights apart.
pub(crate) fn check_readable(path: &Path) -> Result<(), Error> {
    use std::io::Read;
    let read = File::open(path).and_then(|mut file| file.read(&mut [0]));
    match read {
        Ok(1..) => Ok(()),
        Ok(0) => Err(Error::ModelLoad {
            path: path.to_owned(),
            reason: "the file is empty".into(),
            cause: LoadFailure::Empty,
        }),
        Err(error) => Err(Error::ModelFile { path: path.to_owned(), error }),
    }
}

/// Returns the largest context that llama.cpp does not round up to more than `original` tokens, if `longest`
/// fit into it.
fn rope_limit(original: usize, longest: usize) -> Option<usize> {
    /// llama.cpp rounds context sizes up to a multiple of this.
    const STEP: usize = 256;
    Some(original / STEP * STEP).filter(|&limit| longest <= limit)
}

fn file_type_name(number: sys::llama_ftype) -> String {
    // SAFETY: the function takes any number and returns a static string ("unknown" for numbers it does not
    // know).
    let name = unsafe { sys::llama_ftype_name(number) };
    if name.is_null() {
        return format!("type {number}");
    }
    // SAFETY: `name` is not null, and llama.cpp's names are static NUL-terminated strings.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::rope_limit;

    #[test]
    fn contexts_stay_below_the_size_that_changes_the_rope() {
        assert_eq!(rope_limit(4096, 300), Some(4096));
        assert_eq!(rope_limit(4000, 3840), Some(3840));
        assert_eq!(rope_limit(4000, 3841), None, "such a text is rotated the other way in every context");
    }
}
