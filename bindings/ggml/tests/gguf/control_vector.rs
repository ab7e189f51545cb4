//! A cap file with one cap per block, none on block 0, is a control vector for llama.cpp.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use axiscap::file::{CapFile, ControlVector, ModelInfo};
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use llama_cpp_sys_2 as sys;

use crate::theirs::{Theirs, quiet};

/// What llama.cpp's `common_control_vector_load_one` (common/common.cpp) does, step by step: the directions of
/// blocks 1, 2, ... one after the other, zeros where there is none. `None` where it refuses the file.
fn load(path: &Path, strength: f32) -> Option<(usize, Vec<f32>)> {
    let (mut width, mut data) = (None, Vec::<f32>::new());
    for (name, values) in Theirs::open(path)?.vectors() {
        let (direction, block) = name.split_once('.')?;
        let block = block.parse::<usize>().ok().filter(|&block| direction == "direction" && block > 0)?;
        let width = *width.get_or_insert(values.len());
        if values.len() != width {
            return None;
        }
        data.resize(data.len().max(width * block), 0.0);
        for (sum, value) in data[width * (block - 1)..].iter_mut().zip(values) {
            *sum += value * strength;
        }
    }
    Some((width?, data))
}

fn axis(width: usize, seed: usize) -> Axis {
    let value = |index: usize| ((index * 37 + seed * 101) % 211) as f32 - 105.0;
    Axis::from_direction(&(0..width).map(value).collect::<Vec<_>>()).unwrap()
}

fn caps_on(blocks: &[usize], width: usize) -> CapSet {
    let cap =
        |&block: &usize| BlockCap { block, cap: Cap::new(axis(width, block), Bound::floor(0.5).unwrap()) };
    CapSet::new(blocks.iter().map(cap)).unwrap()
}

#[test]
fn the_loader_of_llama_cpp_finds_every_axis_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("caps.gguf");
    let width = 7;
    let file = CapFile::new(caps_on(&[5, 1, 2], width), ModelInfo::new("llama", 8));
    assert!(file.is_control_vector());
    file.write(&path).unwrap();

    let (found, data) = load(&path, 1.0).expect("llama.cpp refuses the file");
    assert_eq!((found, data.len()), (width, 5 * width));
    for (block, values) in (1..).zip(data.chunks(width)) {
        if [1, 2, 5].contains(&block) {
            assert_eq!(values, axis(width, block).values(), "block {block}");
        } else {
            assert!(values.iter().all(|&v| v == 0.0), "block {block}");
        }
    }
    let ours = ControlVector::read(&path).unwrap();
    assert_eq!(ours.directions.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [1, 2, 5]);

    for blocks in [&[0, 1][..], &[1, 1]] {
        let file = CapFile::new(caps_on(blocks, width), ModelInfo::new("llama", 8));
        assert!(!file.is_control_vector());
        file.write(&path).unwrap();
        assert!(load(&path, 1.0).is_none(), "blocks {blocks:?}");
    }
}

#[test]
fn a_model_is_steered_by_a_cap_file() {
    quiet();
    let model = Model::load(&axiscap_testing::small_model());
    let (width, blocks) = (model.width(), model.blocks());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("caps.gguf");
    let middle: Vec<_> = (blocks / 3..blocks / 2).collect();
    let file = CapFile::new(caps_on(&middle, width), ModelInfo::new(model.architecture(), blocks));
    assert_eq!(file.check_model(&model.architecture(), width, blocks).unwrap(), []);
    file.write(&path).unwrap();
    let (found, data) = load(&path, 40.0).expect("llama.cpp refuses the file");
    assert_eq!(found, width);

    let plain = model.logits(None);
    let steered = model.logits(Some(&data));
    assert!(plain.iter().chain(&steered).all(|v| v.is_finite()));
    let moved = plain.iter().zip(&steered).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest change of a logit: {moved}");
    assert!(moved > 0.1, "largest change of a logit: {moved}");
    assert_eq!(model.logits(Some(&vec![0.0; data.len()])), plain, "a zero control vector changes nothing");
}

/// A model loaded for one test.
struct Model(*mut sys::llama_model);

impl Model {
    fn load(path: &Path) -> Self {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string, the parameters are llama.cpp's own.
        let model = unsafe {
            sys::llama_backend_init();
            sys::llama_model_load_from_file(name.as_ptr(), sys::llama_model_default_params())
        };
        assert!(!model.is_null(), "{} is no model", path.display());
        Self(model)
    }

    fn width(&self) -> usize {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_n_embd(self.0) as usize }
    }

    fn blocks(&self) -> usize {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_n_layer(self.0) as usize }
    }

    fn architecture(&self) -> String {
        let mut text = [0 as c_char; 64];
        // SAFETY: the buffer has the stated size and comes back as a C string.
        unsafe {
            let key = c"general.architecture".as_ptr();
            assert!(sys::llama_model_meta_val_str(self.0, key, text.as_mut_ptr(), text.len()) > 0);
            CStr::from_ptr(text.as_ptr()).to_str().unwrap().to_owned()
        }
    }

    /// The logits after one token, in a fresh context under this control vector.
    fn logits(&self, control_vector: Option<&[f32]>) -> Vec<f32> {
        // SAFETY: the context belongs to the live model and is freed once, after its logits were copied; the batch
        // points to a token that outlives the decoding, the control vector has the stated length.
        unsafe {
            let mut params = sys::llama_context_default_params();
            (params.n_ctx, params.n_threads) = (64, 1);
            let context = sys::llama_init_from_model(self.0, params);
            assert!(!context.is_null());
            if let Some(data) = control_vector {
                let (width, last) = (self.width() as i32, self.blocks() as i32 - 1);
                let status = sys::llama_set_adapter_cvec(context, data.as_ptr(), data.len(), width, 1, last);
                assert_eq!(status, 0);
            }
            let vocabulary = sys::llama_model_get_vocab(self.0);
            let mut token = sys::llama_vocab_bos(vocabulary);
            assert_eq!(sys::llama_decode(context, sys::llama_batch_get_one(&mut token, 1)), 0);
            let count = sys::llama_vocab_n_tokens(vocabulary) as usize;
            let logits = std::slice::from_raw_parts(sys::llama_get_logits_ith(context, -1), count).to_vec();
            sys::llama_free(context);
            logits
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: loaded once, freed once, and every context of it is gone.
        unsafe { sys::llama_model_free(self.0) }
    }
}
