//! What calibration found: as text, as JSON, and in the cap file's origin.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use axiscap::file::{CapFile, Origin};
use axiscap_lab::activations::{Projections, Sinks};
use axiscap_lab::calibrate::{BlockFloor, Setting, TABLE};
use axiscap_lab::dose::{Dose, Doses};
use axiscap_lab::rollout::Group;
use serde_json::{Value, json};

use super::{Args, doses};
use crate::answers::Answers;
use crate::output::{counted, file_name, tool};

/// Floors, and what was measured with them.
pub(super) struct Report {
    /// `[caps]`
    pub(super) floors: Vec<BlockFloor>,
    /// `[caps]`
    pub(super) projections: Vec<Projections>,
    pub(super) setting: Setting,
    pub(super) doses: Doses,
    /// Doses of random directions on the held-out answers.
    pub(super) control: Vec<Dose>,
    pub(super) sinks: Sinks,
    /// Positions that the caps leave alone.
    pub(super) skipped: u32,
}

impl Report {
    /// Returns what looks wrong, or strong.
    pub(super) fn warnings(&self) -> Vec<String> {
        let floors = self.floors.iter().filter_map(BlockFloor::warning);
        floors.chain(doses::warning(&self.doses)).collect()
    }

    /// Records in the file how its bounds were made. Tables are `[caps][percentiles]`, or `[texts][...]`.
    pub(super) fn record(&self, args: &Args, file: &mut CapFile, answers: &Answers) {
        let each = |value: &dyn Fn(&BlockFloor) -> f64| -> Vec<f32> {
            self.floors.iter().map(|floor| value(floor) as f32).collect()
        };
        let table = |quantiles: &dyn Fn(&BlockFloor) -> Option<[f64; TABLE.len()]>| -> Vec<f32> {
            let rows = self.floors.iter().map(|floor| quantiles(floor).unwrap_or([f64::NAN; TABLE.len()]));
            rows.flatten().map(|quantile| quantile as f32).collect()
        };
        let blocks = self.floors.iter().map(|r| r.block.to_string()).collect::<Vec<_>>().join(",");
        let mut command = format!(
            "axiscap calibrate {} --axes {} --out {} --percentile {} --blocks {blocks}",
            args.answers.command(&answers.header),
            file_name(&args.axes),
            file_name(&args.out),
            args.percentile,
        );
        for (block, floor) in &args.floors {
            command += &format!(" --floor {block}={floor}");
        }
        if let Some(positions) = args.skip_positions {
            command += &format!(" --skip-positions {positions}");
        }
        command += &args.doses.words();
        let positions = self.sinks.sinks.iter().map(|sink| u32::try_from(sink.position).unwrap_or(u32::MAX));
        // An earlier calibration may have measured what this one does not.
        let mut origin = Origin::default();
        for (key, value) in file.origin.iter().filter(|(key, _)| !key.starts_with("calibrate.")) {
            origin.set(key, value.clone());
        }
        file.origin = origin;
        file.origin
            .set("tool", tool())
            .set("calibrate.command", command)
            .set("calibrate.orientation", "positive projections are the Assistant's")
            .set("calibrate.percentile_from_role_end", self.setting.percentile as f32)
            .set("calibrate.answers", answers.rollouts.len() as u32)
            .set("calibrate.held_out_answers", answers.held_out.len() as u32)
            .set("calibrate.left_out", answers.counts.left_out as u32)
            .set("calibrate.faults", answers.counts.to_string())
            .set("calibrate.default_mean", each(&|r| r.default_mean.unwrap_or(f64::NAN)))
            .set("calibrate.role_mean", each(&|r| r.role_mean.unwrap_or(f64::NAN)))
            .set("calibrate.answers_below_floor", each(&|r| r.answers_below))
            .set("calibrate.tokens_below_floor", each(&|r| r.tokens_below))
            .set("calibrate.quantile_levels", TABLE.map(|level| level as f32).to_vec())
            .set("calibrate.quantiles", table(&|floor| Some(floor.quantiles)))
            .set("calibrate.default_quantiles", table(&|floor| floor.default_quantiles))
            .set("calibrate.token_quantiles", table(&|floor| Some(floor.token_quantiles)))
            .set("calibrate.default_token_quantiles", table(&|floor| floor.default_token_quantiles))
            .set("calibrate.sink_positions", positions.collect::<Vec<_>>());
        if let Some(dose) = &self.doses.answers {
            file.origin
                .set("calibrate.dose.tokens", dose.tokens as u32)
                .set("calibrate.dose.kl_mean", dose.kl.mean as f32)
                .set("calibrate.dose.kl_p95", dose.kl.p95 as f32)
                .set("calibrate.dose.engaged", dose.engaged.iter().map(|&e| e as f32).collect::<Vec<_>>())
                .set(
                    "calibrate.dose.random_kl_p95",
                    self.control.iter().map(|dose| dose.kl.p95 as f32).collect::<Vec<_>>(),
                );
        }
        let of_texts = |value: &dyn Fn(&Dose) -> f64| -> Vec<f32> {
            self.doses.texts.iter().map(|(_, dose)| value(dose) as f32).collect()
        };
        let names: Vec<&str> = self.doses.texts.iter().map(|(name, _)| name.as_str()).collect();
        file.origin
            .set("calibrate.dose.texts", names.join(", "))
            .set("calibrate.dose.perplexity_uncapped", of_texts(&|dose| dose.perplexity_uncapped))
            .set("calibrate.dose.perplexity_capped", of_texts(&|dose| dose.perplexity_capped));
    }

    pub(super) fn text(&self) -> Result<String> {
        let mut text = String::from(
            "block    floor  default    role    AUC  answers below  tokens below (expected engagement)\n",
        );
        for result in &self.floors {
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
            writeln!(
                text,
                "{:>5} {:>8.3} {:>8} {:>7} {:>6} {:>12.1} % {:>10.1} %",
                result.block,
                result.floor,
                number(result.default_mean),
                number(result.role_mean),
                number(result.separation.map(|s| s.auc)),
                100.0 * result.answers_below,
                100.0 * result.tokens_below
            )?;
        }
        writeln!(
            text,
            "floors at percentile {} from the role end, strength {}",
            self.setting.percentile, self.setting.strength
        )?;
        self.write_prompts(&mut text)?;
        self.write_sinks(&mut text)?;
        self.write_doses(&mut text)?;
        Ok(text)
    }

    /// Writes how many tokens are below the highest capped block's floor under each neutral system prompt.
    fn write_prompts(&self, text: &mut String) -> Result<()> {
        /// Maximum columns of a prompt.
        const WIDTH: usize = 60;
        let (Some(floor), Some(projections)) = (self.floors.last(), self.projections.last()) else {
            return Ok(());
        };
        let neutral = projections.prompts.iter().zip(&projections.tokens);
        let neutral: Vec<_> = neutral.filter(|(prompt, _)| prompt.group == Group::Default).collect();
        if neutral.is_empty() {
            return Ok(());
        }
        writeln!(text, "tokens below the floor of block {}, by neutral system prompt:", floor.block)?;
        for (prompt, tokens) in neutral {
            let words = prompt.text.as_deref().map_or("(none)".into(), |text| {
                let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
                let cut: String = line.chars().take(WIDTH).collect();
                if cut.len() < line.len() { format!("{cut}...") } else { cut }
            });
            let below = tokens.share_below(floor.floor.into()).unwrap_or_default();
            writeln!(text, "{:>8.1} %  {words:?}, {}", 100.0 * below, counted(prompt.answers, "answer"))?;
        }
        Ok(())
    }

    /// Writes where attention sinks are, and what the caps do with them.
    fn write_sinks(&self, text: &mut String) -> Result<()> {
        let sinks = &self.sinks;
        for sink in &sinks.sinks {
            let is_left_alone = u32::try_from(sink.position).is_ok_and(|position| position < self.skipped);
            writeln!(
                text,
                "attention sink at position {}: {}",
                sink.position,
                if is_left_alone {
                    "left alone by these caps"
                } else {
                    "capped as any other row (--skip-positions)"
                }
            )?;
            let columns =
                self.floors.iter().zip(&sink.norms).zip(&sink.projections).zip(&sinks.other_projections);
            for (((result, norm), projection), other) in columns {
                writeln!(
                    text,
                    "{:>5} {:>8.0} times the median norm; projection {:.1}, other rows {:.1}",
                    result.block, norm, projection, other
                )?;
            }
        }
        Ok(())
    }

    /// Writes the dose, and that of the control.
    fn write_doses(&self, text: &mut String) -> Result<()> {
        writeln!(
            text,
            "dose                     tokens  engaged  KL mean  KL 95 %  other choice  perplexity"
        )?;
        let answers = self.doses.answers.iter().map(|dose| ("held-out answers".to_owned(), dose));
        let texts = self.doses.texts.iter().map(|(name, dose)| (name.clone(), dose));
        let control = self.control.iter().enumerate();
        let control = control.map(|(index, dose)| (format!("  random direction {}", index + 1), dose));
        for (name, dose) in answers.chain(control).chain(texts) {
            let mut name: String = name.chars().take(24).collect();
            name.extend(std::iter::repeat_n(' ', 24 - name.chars().count()));
            writeln!(
                text,
                "{name} {:>6} {:>6.1} % {:>8.4} {:>8.4} {:>11.1} %  {:.2} -> {:.2} ({:+.1} %)",
                dose.tokens,
                100.0 * dose.most_engaged(),
                dose.kl.mean,
                dose.kl.p95,
                100.0 * dose.other_choice,
                dose.perplexity_uncapped,
                dose.perplexity_capped,
                100.0 * dose.perplexity_rise()
            )?;
        }
        Ok(())
    }

    pub(super) fn json(
        &self,
        args: &Args,
        answers: &Answers,
        warnings: &[String],
        elapsed: Duration,
    ) -> Value {
        let blocks = self.floors.iter().zip(&self.projections);
        let doses: Vec<_> = self.doses.texts.iter().map(|(name, dose)| dose_json(Some(name), dose)).collect();
        json!({
            "out": args.out.display().to_string(),
            "percentile_from_role_end": self.setting.percentile,
            "strength": self.setting.strength,
            "interrupted": false,
            "answers": answers.rollouts.len(),
            "held_out_answers": answers.held_out.len(),
            "left_out": answers.counts.left_out,
            "faults": answers.faults(),
            "judge": answers.header.judge,
            "seed": answers.header.seed,
            "seconds": elapsed.as_secs_f64(),
            "blocks": blocks.map(|(floor, projections)| block_json(floor, projections)).collect::<Vec<_>>(),
            "skip_positions": self.skipped,
            "sinks": sinks_json(&self.sinks),
            "dose": {
                "answers": self.doses.answers.as_ref().map(|dose| dose_json(None, dose)),
                "random_directions": self.control.iter().map(|dose| dose_json(None, dose)).collect::<Vec<_>>(),
                "texts": doses,
            },
            "warnings": warnings,
        })
    }
}

fn dose_json(name: Option<&str>, dose: &Dose) -> Value {
    let mut object = json!({
        "tokens": dose.tokens,
        "kl_mean": dose.kl.mean,
        "kl_median": dose.kl.median,
        "kl_p95": dose.kl.p95,
        "kl_max": dose.kl.max,
        "other_choice": dose.other_choice,
        "engaged": dose.engaged,
        "perplexity_uncapped": dose.perplexity_uncapped,
        "perplexity_capped": dose.perplexity_capped,
        "perplexity_rise": dose.perplexity_rise(),
    });
    if let Some(name) = name {
        object["name"] = name.into();
    }
    object
}

fn sinks_json(sinks: &Sinks) -> Value {
    let positions: Vec<_> = sinks
        .sinks
        .iter()
        .map(
            |sink| json!({ "position": sink.position, "norms": sink.norms, "projections": sink.projections }),
        )
        .collect();
    json!({
        "positions": positions,
        "other_projections": sinks.other_projections,
        "elsewhere": sinks.elsewhere,
    })
}

fn block_json(floor: &BlockFloor, projections: &Projections) -> Value {
    let prompts: Vec<_> = projections
        .prompts
        .iter()
        .zip(&projections.tokens)
        .enumerate()
        .map(|(index, (prompt, tokens))| {
            let means: Vec<f64> = projections
                .answers
                .iter()
                .filter(|answer| answer.0 == index)
                .map(|answer| answer.1)
                .collect();
            let mean = (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64);
            json!({
                "group": prompt.group,
                "system": prompt.text,
                "answers": prompt.answers,
                "mean": mean,
                "tokens": tokens.count(),
                "tokens_below": tokens.share_below(floor.floor.into()),
                "token_quantiles": tokens.quantiles(TABLE),
            })
        })
        .collect();
    json!({
        "block": floor.block,
        "floor": floor.floor,
        "default_mean": floor.default_mean,
        "role_mean": floor.role_mean,
        "auc": floor.separation.map(|s| s.auc),
        "d_prime": floor.separation.map(|s| s.d_prime),
        "answers_below": floor.answers_below,
        "tokens_below": floor.tokens_below,
        "thoughts_below": floor.thoughts_below,
        "quantile_levels": TABLE,
        "quantiles": floor.quantiles,
        "default_quantiles": floor.default_quantiles,
        "token_quantiles": floor.token_quantiles,
        "default_token_quantiles": floor.default_token_quantiles,
        "system_prompts": prompts,
    })
}
