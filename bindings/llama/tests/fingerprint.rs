//! What tells a model from others: digests of its norms, read from its files.

mod support;

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use axiscap_llama::{Context, Error, Fingerprint, Model, ModelOptions, Token};
use axiscap_testing::llama::{ARCHITECTURES, Description, TestModel};
use llama_cpp_sys_2 as sys;

fn names(fingerprint: &Fingerprint) -> Vec<&str> {
    fingerprint.model.norms.iter().map(|norm| norm.tensor.as_str()).collect()
}

fn write(path: &Path, description: &Description) {
    TestModel::write(description, path).expect("a model");
}

#[test]
fn it_is_the_same_with_and_without_the_weights_in_memory() {
    let whole = support::model().fingerprint().unwrap();
    assert_eq!(Fingerprint::read(support::path()).unwrap(), whole);
    assert_eq!((whole.width, whole.model.blocks, whole.model.norms.len()), (576, 30, 31));
    assert_eq!(
        names(&whole)[..3],
        ["output_norm.weight", "blk.0.attn_norm.weight", "blk.1.attn_norm.weight"]
    );
}

/// Architectures whose norms have no weights.
const WITHOUT_WEIGHTS: [&str; 3] = ["hrm_text", "olmo", "talkie"];

#[test]
fn every_architecture_has_a_norm_of_each_block_or_none_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut tried = 0;
    for architecture in ARCHITECTURES {
        let experts = !axiscap_testing::llama::has_dense_form(architecture);
        // A few cannot be written, and embedding models and their like generate no text.
        let Ok(()) = TestModel::write(&Description::new(architecture, experts), &path) else { continue };
        let read = Fingerprint::read(&path).unwrap();
        let Ok(model) = Model::load(&path, &ModelOptions::default()) else { continue };
        tried += 1;
        assert_eq!(read, model.fingerprint().unwrap(), "{architecture}");
        assert_eq!((read.model.architecture.as_str(), read.width), (architecture, model.shape().width));
        let names = names(&read);
        let blocks = names.iter().filter(|name| name.starts_with("blk.")).count();
        let expected = if WITHOUT_WEIGHTS.contains(&architecture) { 0 } else { model.shape().blocks };
        assert_eq!(blocks, expected, "{architecture}: {names:?}");
    }
    assert!(tried > 120, "{tried}");
}

#[test]
fn norms_that_a_block_lacks_are_replaced_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    // Blocks whose only norms come after attention and feed-forward.
    write(&path, &Description::new("olmo2", false));
    let fingerprint = Fingerprint::read(&path).unwrap();
    assert_eq!(names(&fingerprint)[..2], ["output_norm.weight", "blk.0.post_attention_norm.weight"]);
    // No norm has weights.
    write(&path, &Description::new("olmo", false));
    assert!(names(&Fingerprint::read(&path).unwrap()).is_empty());
}

#[test]
fn other_weights_have_other_digests() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("a"), &Description::new("llama", false));
    let first = Fingerprint::read(at("a")).unwrap();
    write(&at("b"), Description::new("llama", false).set("general.name", "another"));
    let named = Fingerprint::read(at("b")).unwrap();
    assert_eq!(named.model.name.as_deref(), Some("another"));
    assert_eq!(named.model.norms, first.model.norms);

    // One bit of the last byte of each norm.
    let bytes = fs::read(at("a")).unwrap();
    for (index, norm) in first.model.norms.iter().enumerate() {
        let mut other = bytes.clone();
        other[end_of(&at("a"), &norm.tensor) - 1] ^= 1;
        fs::write(at("c"), other).unwrap();
        let norms = Fingerprint::read(at("c")).unwrap().model.norms;
        let differ: Vec<_> = (0..norms.len()).filter(|&i| norms[i] != first.model.norms[i]).collect();
        assert_eq!(differ, [index], "{}", norm.tensor);
    }
}

/// A fine-tune may have the name, the shape and the size of another one.
#[test]
fn a_saved_sequence_is_refused_by_a_model_of_other_norms() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
    write(&first, &Description::new("llama", false));
    let mut bytes = fs::read(&first).unwrap();
    bytes[end_of(&first, "output_norm.weight") - 1] ^= 1;
    fs::write(&second, bytes).unwrap();
    let models = [&first, &second, &first].map(|path| Model::load(path, &ModelOptions::default()).unwrap());
    let [mut saves, mut other, mut same] =
        models.each_ref().map(|model| Context::uncapped(model, &support::options()).unwrap());
    saves.prefill(&[Token(5), Token(6)], 0, 0).unwrap();
    let saved = saves.save_sequence(0).unwrap();
    let error = other.restore_sequence(&saved, 0).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
    same.restore_sequence(&saved, 0).unwrap();
    assert_eq!(same.position(0), 2);
}

/// Returns the end of a tensor's data in a file.
fn end_of(path: &Path, tensor: &str) -> usize {
    let [path, tensor] = [path.to_str().unwrap(), tensor].map(|text| CString::new(text).unwrap());
    let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
    // SAFETY: the texts are NUL-terminated and live for the calls. The file is open until it is freed.
    unsafe {
        let file = sys::gguf_init_from_file(path.as_ptr(), params);
        assert!(!file.is_null());
        let index = sys::gguf_find_tensor(file, tensor.as_ptr());
        let start = sys::gguf_get_data_offset(file) + sys::gguf_get_tensor_offset(file, index);
        let end = start + sys::gguf_get_tensor_size(file, index);
        sys::gguf_free(file);
        end
    }
}

/// Has llama.cpp write a model with weights of another type.
fn quantise(from: &Path, to: &Path, file_type: sys::llama_ftype) {
    let [from, to] = [from, to].map(|path| CString::new(path.to_str().unwrap()).unwrap());
    // SAFETY: the paths are NUL-terminated and live for the call, and the parameters are llama.cpp's own.
    let status = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = file_type;
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params)
    };
    assert_eq!(status, 0);
}

#[test]
fn every_quantisation_of_a_model_has_the_same_digests() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for architecture in ["llama", "gemma3"] {
        write(&at("f32"), &Description::new(architecture, false));
        let first = Fingerprint::read(at("f32")).unwrap();
        for file_type in [sys::LLAMA_FTYPE_MOSTLY_F16, sys::LLAMA_FTYPE_MOSTLY_Q8_0] {
            quantise(&at("f32"), &at("other"), file_type);
            let other = Fingerprint::read(at("other")).unwrap();
            assert_eq!(other.model.file_type, Some(file_type));
            assert_eq!(other.model.norms, first.model.norms, "{architecture}");
            assert_ne!(fs::read(at("other")).unwrap().len(), fs::read(at("f32")).unwrap().len());
        }
    }
}

#[test]
fn a_file_that_changed_after_it_was_loaded_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    write(&path, &Description::new("llama", false));
    let model = Model::load(&path, &ModelOptions::default()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let whole = model.norms().unwrap();

    // A new file in the place of the loaded one, which llama.cpp may have mapped.
    let replace = |bytes: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    };
    for length in [bytes.len() - 64, bytes.len() / 2, 100, 0] {
        replace(&bytes[..length]);
        let error = model.norms().unwrap_err();
        assert!(matches!(error, Error::ModelChanged { .. }), "{length}: {error}");
        assert!(error.to_string().contains("m.gguf has changed"), "{error}");
    }
    replace(&bytes);
    assert_eq!(model.norms().unwrap(), whole);
    fs::remove_file(&path).unwrap();
    assert!(matches!(model.norms().unwrap_err(), Error::ModelFile { .. }));
    assert!(matches!(model.fingerprint().unwrap_err(), Error::ModelFile { .. }));
    assert!(matches!(Fingerprint::read(&path).unwrap_err(), Error::ModelFile { .. }));
    File::create(&path).unwrap();
    assert!(matches!(Fingerprint::read(&path).unwrap_err(), Error::ModelLoad { .. }));
}
