//! The caps in force, as JSON.

use axiscap_ggml::{GuardedContext, ModelCaps};
use serde_json::{Number, Value, json};

use super::control::Control;

/// Describes the caps in force and the contexts that have them.
pub(crate) fn describe(control: &Control) -> Value {
    // The origin is locked first, so that no change comes between the two.
    let origin = control.origin();
    let (caps, contexts) = (control.capping.in_force(), control.capping.contexts());
    json!({
        "generation": caps.generation,
        "enabled": caps.enabled,
        "files": origin.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
        "strength": origin.strength.map(number),
        "models": caps.models.iter().map(|model| describe_model(model, &contexts)).collect::<Vec<_>>(),
        "contexts": contexts.iter().map(describe_context).collect::<Vec<_>>(),
    })
}

fn describe_model(model: &ModelCaps, contexts: &[GuardedContext]) -> Value {
    let caps = model.caps.caps().iter().enumerate().map(|(index, entry)| {
        let (cap, bound) = (&entry.cap, entry.cap.bound());
        json!({
            "cap": index,
            "block": entry.block,
            "name": cap.name(),
            "floor": number(bound.lo()),
            "ceiling": number(bound.hi()),
            "strength": number(cap.strength()),
        })
    });
    json!({
        "caps": model.name,
        "model": {
            "architecture": model.shape.architecture,
            "blocks": model.shape.blocks,
            "width": model.shape.width,
            "norms": model.norms.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        },
        "policy": { "skip_positions": model.caps.policy().skip_positions },
        "list": caps.collect::<Vec<_>>(),
        "contexts": contexts.iter().filter(|context| context.caps == model.name).count(),
    })
}

fn describe_context(context: &GuardedContext) -> Value {
    let routes = context.routes.iter();
    let routes = routes.map(|used| json!({ "device": used.device, "route": used.route.to_string() }));
    json!({
        "id": context.id,
        "caps": context.caps,
        "model": context.model.to_string(),
        "enabled": context.enabled,
        "micro_batches": context.micro_batches,
        "rows": context.stats.iter().map(|stats| stats.rows + stats.skipped).max().unwrap_or(0),
        "routes": routes.collect::<Vec<_>>(),
    })
}

/// Returns a number with the digits that it has as f32. JSON has none for infinity, which stands for no bound.
pub(super) fn number(value: f32) -> Value {
    let shortest = value.to_string().parse().ok().and_then(Number::from_f64);
    shortest.map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_of_f32() {
        assert_eq!(number(0.1).to_string(), "0.1");
        assert_eq!(number(-63.25).to_string(), "-63.25");
        assert_eq!(number(f32::NEG_INFINITY), Value::Null);
        assert_eq!(number(f32::MIN).as_f64(), Some(-3.402_823_5e38));
    }
}
