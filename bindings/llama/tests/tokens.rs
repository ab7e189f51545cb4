//! Tokens added to a prompt: BOS if the model asks for it, and none at the end.

mod support;

use std::fs;

use axiscap_llama::{Model, ModelOptions};
use support::{model, path};

/// Renames a key of the model's metadata to one of the same length, and sets its value, a bool.
fn renamed(bytes: &mut [u8], from: &str, to: &str, value: bool) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|bytes| bytes == from.as_bytes()).expect("the key");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    // After the key come its type in four bytes and the value.
    bytes[at + to.len() + 4] = u8::from(value);
}

#[test]
fn eos_is_not_added_to_a_prompt_for_a_model_that_asks_for_it() {
    let plain = model();
    let mut bytes = fs::read(path()).expect("the model");
    renamed(&mut bytes, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", true);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("eos.gguf");
    fs::write(&file, bytes).expect("room for a copy");
    let asking = Model::load(&file, &ModelOptions::default()).expect("the model loads");
    assert!(asking.llama().vocab().should_add_eos() && !plain.llama().vocab().should_add_eos());
    let eos = asking.llama().vocab().eos();
    for text in ["The sea at night", "Over.<|im_end|>", "<|im_start|>user\nHello<|im_end|>\n"] {
        let tokens = asking.tokenize(text, true).expect("tokens");
        // An EOS that ends the text itself stays.
        assert_eq!(tokens, plain.tokenize(text, true).expect("tokens"));
        assert_eq!(tokens, asking.tokenize(text, false).expect("tokens"));
        assert_eq!(tokens.last() == Some(&eos), text.ends_with("<|im_end|>"), "{text}");
    }
    assert!(asking.tokenize("", true).expect("tokens").is_empty());
}
