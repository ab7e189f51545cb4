//! The axes as JSON, as a page, and what is wrong with them.

use axiscap_lab::extract::{Extraction, HeldOut};
use axiscap_lab::report::{BlockRow, Report, RoleRow, TraitRow};
use axiscap_llama::Model;
use serde_json::{Value, json};

use super::{Args, blocks_named};
use crate::answers::Answers;

/// Below this score an axis hardly tells the groups apart.
const LEAST_AUC: f64 = 0.7;

/// Below this cosine an axis hangs on the choice of roles.
const LEAST_COSINE: f64 = 0.5;

/// Above this share of a unit vector's length, one channel is most of it.
const MOST_OF_ONE_CHANNEL: f32 = 0.7;

/// Returns what a user has to know before axes are used.
pub(super) fn warnings(found: &Extraction) -> Vec<String> {
    let best = found.best_block();
    let block = best.block;
    let mut warnings = Vec::new();
    if best.held_out.auc < LEAST_AUC {
        warnings.push(format!(
            "on block {block} the axis hardly tells default answers from role play (AUC {:.3}): the model may not play roles; look at the answers, or ask for other ones",
            best.held_out.auc
        ));
    }
    if best.cosine_halves.is_some_and(|cosine| cosine < LEAST_COSINE) {
        warnings.push(format!(
            "on block {block} the axes of one half of the roles and of the other have a cosine of {:.3}: the axis hangs on the choice of roles; use more roles, or more answers per role",
            best.cosine_halves.unwrap_or_default()
        ));
    }
    if best.peak.1.abs() > MOST_OF_ONE_CHANNEL {
        warnings.push(format!(
            "on block {block} channel {} has {:.2} of the unit axis: it is a massive activation rather than character; --drop-massive takes such channels out where they meet the criteria",
            best.peak.0, best.peak.1
        ));
    }
    let unused: Vec<_> = found.roles.iter().filter(|role| !role.is_used).map(|r| r.name.as_str()).collect();
    if !unused.is_empty() {
        warnings.push(format!(
            "{} of {} roles have too few answers and are left out: {}",
            unused.len(),
            found.roles.len(),
            unused.join(", ")
        ));
    }
    if found.held_out == HeldOut::Questions && !found.roles.is_empty() {
        warnings.push(
            "the axes are tested on other questions, but on the roles that they were made from: with two roles or more, and answers of each in both halves of the questions, they are tested on other roles too".into(),
        );
    }
    warnings
}

/// Returns the axes as JSON.
pub(super) fn json(found: &Extraction) -> Value {
    let blocks: Vec<_> = found
        .blocks
        .iter()
        .map(|axis| {
            let components = axis.components.as_ref();
            json!({
                "block": axis.block,
                "norm": axis.axis.norm(),
                "auc": axis.held_out.auc,
                "d_prime": axis.held_out.d_prime,
                "cosine_next": axis.cosine_next,
                "cosine_halves": axis.cosine_halves,
                "cosine_first_component": components.map(|components| components.cosine_first),
                "variance_explained": components.map(|components| &components.variance),
                "peak_channel": axis.peak.0,
                "peak_value": axis.peak.1,
                "thoughts_cosine": axis.thoughts.map(|(cosine, _)| cosine),
                "thoughts_auc": axis.thoughts.map(|(_, separation)| separation.auc),
                "default_mean": axis.default_mean,
                "role_means": axis.role_means,
                "trait_cosines": axis.traits.iter().map(|(cosine, _)| cosine).collect::<Vec<_>>(),
                "trait_aucs": axis.traits.iter().map(|(_, separation)| separation.auc).collect::<Vec<_>>(),
            })
        })
        .collect();
    let roles: Vec<_> = found
        .roles
        .iter()
        .map(|role| json!({ "name": role.name, "answers": role.answers, "used": role.is_used }))
        .collect();
    let massive: Vec<_> = found
        .massive
        .iter()
        .map(|channel| json!({ "channel": channel.channel, "blocks": channel.blocks }))
        .collect();
    json!({
        "held_out": found.held_out.to_string(),
        "recommended_blocks": found.recommended.clone().collect::<Vec<_>>(),
        "best_block": found.best_block().block,
        "roles": roles,
        "traits": found.traits.iter().map(|one| &one.name).collect::<Vec<_>>(),
        "massive_channels": massive,
        "blocks": blocks,
    })
}

/// Returns the page.
pub(super) fn page<'a>(
    args: &Args,
    model: &'a Model,
    answers: &Answers,
    found: &Extraction,
    warnings: &[String],
) -> Report<'a> {
    let (best, header) = (found.best_block(), &answers.header);
    let all = |name: &str| answers.all_by_role.get(name).copied().unwrap_or_default();
    let role = |(role, &projection): (&axiscap_lab::extract::RoleSummary, &Option<f64>)| RoleRow {
        name: role.name.clone(),
        answers: all(&role.name),
        kept: if role.is_used { role.answers } else { 0 },
        projection,
    };
    let one = |(one, (cosine, separation)): (&axiscap_lab::extract::TraitSummary, &(f64, _))| {
        let separation: &axiscap_lab::Separation = separation;
        TraitRow { name: one.name.clone(), cosine: *cosine, auc: separation.auc }
    };
    let block = |axis: &axiscap_lab::extract::BlockAxis| BlockRow {
        block: axis.block,
        norm: f64::from(axis.axis.norm().unwrap_or(f32::NAN)),
        auc: axis.held_out.auc,
        d_prime: axis.held_out.d_prime,
        cosine_next: axis.cosine_next,
        cosine_halves: axis.cosine_halves,
        cosine_first_component: axis.components.as_ref().map(|components| components.cosine_first),
        variance: axis.components.as_ref().map_or(Vec::new(), |components| components.variance.clone()),
        peak: axis.peak,
        thoughts_cosine: axis.thoughts.map(|(cosine, _)| cosine),
    };
    let count = answers.rollouts.len();
    let judge = header.judge.as_ref().map_or("none".into(), |judged| {
        let least = judged.least.map_or(String::new(), |least| format!(", from a score of {least:.3} on"));
        format!("{}{least}", judged.by)
    });
    Report {
        model: model.name().unwrap_or("a model without a name"),
        architecture: &model.shape().architecture,
        command: args.command(answers),
        facts: vec![
            ("Answers measured", format!("{count} of {}", answers.counts.answers)),
            (
                "Left out",
                match answers.counts.to_string() {
                    none if none.is_empty() => "none".into(),
                    counts => counts,
                },
            ),
            ("Judge of role play", judge),
            ("Maximum tokens of an answer", header.max_tokens.to_string()),
            ("Temperature", header.temperature.to_string()),
            ("Seed", header.seed.to_string()),
            ("Chat template", header.chat_template.clone().unwrap_or_else(|| "the model's own".into())),
        ],
        held_out_on: found.held_out.name(),
        blocks: found.blocks.iter().map(block).collect(),
        roles: found.roles.iter().zip(&best.role_means).map(role).collect(),
        default_mean: best.default_mean,
        shown_block: best.block,
        recommended: found.recommended.clone(),
        why_recommended: format!(
            "Of middle and late blocks, {} tell the two groups apart as well as any on {} that their axes were not made from.",
            blocks_named(&found.recommended),
            found.held_out
        ),
        massive: found.massive.iter().map(|channel| (channel.channel, channel.blocks.clone())).collect(),
        massive_dropped: args.drop_massive,
        traits: found.traits.iter().zip(&best.traits).map(one).collect(),
        warnings: warnings.to_vec(),
    }
}
