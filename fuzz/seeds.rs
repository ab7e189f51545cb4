//! Writes the files that fuzzing starts from into a folder, one folder in it per target.

use std::path::Path;

use axiscap::file::gguf::{self, Value};
use axiscap::file::{CapFile, ModelInfo, NormDigest};
use axiscap::import::export;
use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};

#[allow(dead_code, unreachable_pub)]
#[path = "../tests/import/support.rs"]
mod support;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: seeds FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder.join("cap_file"))?;
    std::fs::create_dir_all(folder.join("import"))?;
    let file = cap_files(&folder.join("cap_file"))?;
    import(&folder.join("import"), &file)
}

fn cap_files(folder: &Path) -> Result<CapFile, Box<dyn std::error::Error>> {
    let cap = |block, x: f32| -> axiscap::Result<BlockCap> {
        let axis = Axis::from_direction(&[x, 1.0, -2.0])?;
        Ok(BlockCap { block, cap: Cap::new(axis, Bound::band(-x, x)?).with_name("assistant") })
    };
    let caps = CapSet::new([cap(1, 1.0)?, cap(1, 2.0)?, cap(0, 3.0)?])?;
    let mut file = CapFile::new(caps, ModelInfo::new("llama", 2));
    file.orientation = Some("more Assistant".into());
    file.caps = file.caps.with_policy(axiscap::Policy::default().with_skip_positions(1));
    let norm = |tensor: &str, byte| NormDigest { tensor: tensor.into(), sha256: [byte; 32] };
    file.model.norms = vec![norm("output_norm.weight", 1), norm("blk.0.attn_norm.weight", 0xab)];
    file.origin.set("quantiles", vec![0.25f32, 0.5]);
    file.write(&folder.join("caps"))?;

    let metadata = [
        ("general.architecture".to_owned(), Value::from("controlvector")),
        ("controlvector.model_hint".to_owned(), "llama".into()),
        ("general.alignment".to_owned(), 8u32.into()),
    ];
    let tensors = [("direction.1".to_owned(), &[3.0f32, 4.0][..])];
    std::fs::write(folder.join("vector"), gguf::to_bytes(&metadata, &tensors)?)?;
    Ok(file)
}

/// Whole files after a byte, and pickles after the letter p.
fn import(folder: &Path, file: &CapFile) -> Result<(), Box<dyn std::error::Error>> {
    let vector: Vec<u8> = std::fs::read(folder.with_file_name("cap_file").join("vector"))?;
    let axis = support::P::Tensor(support::Tensor::whole("BFloat16Storage", "0", &[1, 3]));
    let seeds = [
        ("config", b'f', support::config()),
        ("axis", b'f', support::stacked(&[[1.0, 2.0, 3.0]; 4])),
        ("vector", b'f', vector),
        ("safetensors", b'f', export::safetensors(file)?),
        ("manifest", b'f', b"pca: [{layer: 1, file: a}]\npc_titles: [x]\n".to_vec()),
        ("config-pickle", b'p', support::pickle(&support::config_value())),
        ("axis-pickle", b'p', support::pickle(&support::dict([("axis", axis)]))),
    ];
    for (name, first, bytes) in seeds {
        std::fs::write(folder.join(name), [&[first], bytes.as_slice()].concat())?;
    }
    Ok(())
}
