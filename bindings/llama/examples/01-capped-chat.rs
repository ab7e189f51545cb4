//! One capped answer, and what the caps did.
//!
//!     cargo run --release -p axiscap-llama --example 01-capped-chat -- MODEL.gguf CAPS.gguf "Who are you?"

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;

use axiscap::file::CapFile;
use axiscap_llama::{Chat, Context, ContextOptions, GenerateOptions, Model, ModelOptions, TemplateOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(caps), Some(question)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: 01-capped-chat MODEL.gguf CAPS.gguf QUESTION".into());
    };
    let model = Model::load(model, &ModelOptions::default())?;
    let caps = CapFile::read(caps.as_ref())?;
    let mut context = Context::new(&model, &ContextOptions::default())?;
    context.set_caps(Some(&caps.caps))?;
    let template = model.chat_template(&TemplateOptions::default())?;
    let mut chat = Chat::new(&template, None);
    chat.say(&mut context, &question, &GenerateOptions::default(), |piece| {
        print!("{piece}");
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!();
    for (entry, stats) in caps.caps.caps().iter().zip(context.session()?.stats()) {
        let share = 100.0 * stats.engagement().unwrap_or(0.0);
        println!("block {}: engaged on {share:.0} % of {} rows", entry.block, stats.rows);
    }
    Ok(())
}
