//! A program of another workspace that writes capped text.

use std::error::Error;
use std::ops::ControlFlow;

use axiscap::file::CapFile;
use axiscap_llama::{Context, ContextOptions, GenerateOptions, Model, ModelOptions, generate};

fn main() -> Result<(), Box<dyn Error>> {
    let model = Model::load("model.gguf", &ModelOptions::default())?;
    let caps = CapFile::read("caps.gguf".as_ref())?;
    let mut context = Context::new(&model, &ContextOptions::default())?;
    context.set_caps(Some(&caps.caps))?;
    let prompt = model.tokenize("The sea at night", true)?;
    let generated = generate(&mut context, &prompt, &GenerateOptions::default(), |piece| {
        print!("{piece}");
        ControlFlow::Continue(())
    })?;
    for (entry, stats) in caps.caps.caps().iter().zip(context.session()?.stats()) {
        println!("block {}: engaged on {:?} of its rows", entry.block, stats.engagement());
    }
    println!("{} tokens", generated.tokens.len());
    Ok(())
}
