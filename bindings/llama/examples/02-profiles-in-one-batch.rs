//! Two personas and an uncapped control in one batch.
//!
//!     cargo run --release -p axiscap-llama --example 02-profiles-in-one-batch -- MODEL.gguf CAPS.gguf "Who are you?"
//!
//! One profile holds projections above the floors of the cap file, the other one below them. Each of the three
//! answers has its own profile, and all are decoded together.

use std::error::Error;
use std::ops::ControlFlow;

use axiscap::Bound;
use axiscap::file::CapFile;
use axiscap_llama::{
    Batcher, BatcherOptions, Context, ContextOptions, Event, GenerateOptions, Message, Model, ModelOptions,
    ProfileId, Request, Role, TemplateOptions,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(caps), Some(question)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: 02-profiles-in-one-batch MODEL.gguf CAPS.gguf QUESTION".into());
    };
    let model = Model::load(model, &ModelOptions::default())?;
    let assistant = CapFile::read(caps.as_ref())?.caps;
    // The same axes with each floor as a ceiling.
    let other = assistant.with_bounds(|cap| match cap.bound() {
        bound if bound.lo().is_finite() => Bound::ceiling(bound.lo()).unwrap_or(bound),
        bound => bound,
    });

    let mut context = Context::new(&model, &ContextOptions { sequences: 3, ..ContextOptions::default() })?;
    context.set_caps(Some(&assistant))?;
    let other = context.session()?.add_profile("other", &other)?;
    let options = BatcherOptions { statistics: true, ..BatcherOptions::default() };
    let mut batcher = Batcher::new(context, options)?;

    let template = model.chat_template(&TemplateOptions::default())?;
    let prompt = template.prompt(&[Message::new(Role::User, question)])?;
    let mut names = Vec::new();
    for (name, profile) in
        [("assistant", Some(ProfileId::DEFAULT)), ("other", Some(other)), ("uncapped", None)]
    {
        let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
        names.push((batcher.submit(Request::new(prompt.clone(), options).under(profile))?, name));
    }
    batcher.run(|event| {
        if let Event::Done { request, result } = event {
            let name = names.iter().find(|(id, _)| *id == request).map_or("?", |(_, name)| name);
            match result {
                Ok(done) => {
                    println!("{name}: {}", done.generated.text.trim());
                    for (cap, stats) in done.stats.iter().enumerate() {
                        let share = 100.0 * stats.engagement().unwrap_or(0.0);
                        println!("  cap {cap}: engaged on {share:.0} % of {} rows", stats.rows);
                    }
                }
                Err(error) => println!("{name}: {error}"),
            }
        }
        ControlFlow::Continue(())
    });
    Ok(())
}
