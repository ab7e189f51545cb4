//! Options about the caps, shared by the commands.

use std::path::{Path, PathBuf};

use anyhow::Result;
use axiscap::CapSet;
use axiscap::file::CapFile;
use axiscap_llama::{Context, Model, ProfileId, Watch};
use clap::Args;

use crate::levels::WatchArgs;
use crate::model::model_info;
use crate::schedule::When;
use crate::{output, sampling, schedule};

/// Which caps, if any, and how strongly they hold.
#[derive(Debug, Args)]
pub(crate) struct CapsArgs {
    /// The caps, a cap file (see `axiscap calibrate`); without one the model runs uncapped
    #[arg(long, value_name = "FILE")]
    pub(crate) caps: Option<PathBuf>,
    #[command(flatten)]
    hold: HoldArgs,
    /// When the caps act: always; on generated rows, not on the prompt; on the assistant's own turns; with a
    /// strength that grows from one position to another; from the watched average's alarm until its end; or from an
    /// alarm of your own until its end (see `axiscap drift`)
    #[arg(
        long,
        value_name = "always|generated|assistant|ramp=FROM..TO|alarm|alarm=WEIGHT,ENGAGE,RELEASE",
        requires = "caps",
        value_parser = schedule::when
    )]
    when: Option<When>,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

/// Which caps, for commands that need some, and how strongly they hold.
#[derive(Debug, Args)]
pub(crate) struct RequiredCapsArgs {
    /// The caps, a cap file (see `axiscap calibrate`)
    #[arg(long, value_name = "FILE")]
    pub(crate) caps: PathBuf,
    #[command(flatten)]
    hold: HoldArgs,
}

/// How strongly caps hold.
#[derive(Debug, Args)]
struct HoldArgs {
    /// Strength of every cap in place of the file's: 1 moves projections onto the bound, 0 only observes
    #[arg(long, value_name = "S", requires = "caps", value_parser = sampling::share)]
    strength: Option<f32>,
    /// Leave rows at the first N positions alone, in place of what the file says
    #[arg(long, value_name = "N", requires = "caps")]
    skip_positions: Option<u32>,
    /// Only measure the projections, as with strength 0
    #[arg(long, requires = "caps", conflicts_with = "strength")]
    observe: bool,
}

impl CapsArgs {
    /// Reads the cap file.
    pub(crate) fn read(&self) -> Result<Option<LoadedCaps>> {
        self.caps.as_deref().map(|path| LoadedCaps::read(path, &self.hold)).transpose()
    }

    /// Returns the watch of the caps.
    pub(crate) fn watch(&self, caps: &CheckedCaps) -> Result<Watch> {
        self.watch.watch(&caps.file, &caps.path)
    }

    /// Whether the caps act on the watch's alarm.
    pub(crate) fn wait_for_watch(&self) -> bool {
        self.when == Some(When::OnWatchedAlarm)
    }

    /// Has the caps of a context act as --when says.
    pub(crate) fn schedule(
        &self,
        context: &mut Context<'_>,
        caps: &CapSet,
        watch: Option<&Watch>,
    ) -> Result<()> {
        match self.when {
            Some(when) => {
                let schedule = when.schedule(watch, caps)?;
                Ok(context.schedule_profile(0, Some(ProfileId::DEFAULT), schedule)?)
            }
            None => Ok(()),
        }
    }
}

impl RequiredCapsArgs {
    /// Reads the cap file.
    pub(crate) fn read(&self) -> Result<LoadedCaps> {
        LoadedCaps::read(&self.caps, &self.hold)
    }

    /// Returns the options as they are written on a command line, without folders.
    pub(crate) fn words(&self) -> String {
        let HoldArgs { strength, skip_positions, observe } = &self.hold;
        let mut words = format!("--caps {}", output::file_name(&self.caps));
        if let Some(strength) = strength {
            words += &format!(" --strength {strength}");
        }
        if let Some(count) = skip_positions {
            words += &format!(" --skip-positions {count}");
        }
        if *observe {
            words += " --observe";
        }
        words
    }
}

/// A cap file, not yet compared with the model.
#[derive(Debug)]
pub(crate) struct LoadedCaps {
    path: PathBuf,
    file: CapFile,
    strength: Option<f32>,
    skip_positions: Option<u32>,
    observe: bool,
}

impl LoadedCaps {
    fn read(path: &Path, hold: &HoldArgs) -> Result<Self> {
        let file = CapFile::read(path)?;
        let &HoldArgs { strength, skip_positions, observe } = hold;
        Ok(Self { path: path.into(), file, strength, skip_positions, observe })
    }

    /// Returns the caps if they fit the model. Warnings about them go to stderr.
    pub(crate) fn check(self, model: &Model) -> Result<CheckedCaps> {
        let Self { path, file, strength, skip_positions, observe } = self;
        check_file(&file, &path, model)?;
        if file.is_unbounded() && !observe {
            output::warning(&format!(
                "{}: no cap has a bound, so nothing can be capped and the projections are only measured; `axiscap calibrate` gives axes their bounds (--observe measures without this warning)",
                path.display()
            ));
        }
        let caps = match strength {
            Some(strength) => file.caps.with_strength(strength)?,
            None => file.caps.clone(),
        };
        let caps = match skip_positions {
            Some(count) => {
                let policy = caps.policy().with_skip_positions(count);
                caps.with_policy(policy)
            }
            None => caps,
        };
        Ok(CheckedCaps { caps, observe, file, path })
    }
}

/// Caps that fit the model.
#[derive(Debug)]
pub(crate) struct CheckedCaps {
    /// With their own strengths, or that of --strength.
    pub(crate) caps: CapSet,
    /// Whether they begin by observing only.
    pub(crate) observe: bool,
    /// The file, as it was read.
    pub(crate) file: CapFile,
    path: PathBuf,
}

impl CheckedCaps {
    /// Returns the caps with strength 0 if they only observe.
    pub(crate) fn acting(self) -> Result<CapSet> {
        if self.observe { Ok(self.caps.with_strength(0.0)?) } else { Ok(self.caps) }
    }
}

/// Refuses a cap file of another model's shape. Other warnings about it, on this model, go to stderr.
pub(crate) fn check_file(file: &CapFile, path: &Path, model: &Model) -> Result<()> {
    let shape = model.shape();
    let fits = file.check_model(&shape.architecture, shape.width, shape.blocks);
    let mut warnings = fits.map_err(|error| error.in_file(path))?;
    warnings.extend(file.check_fingerprint(&model_info(model)?));
    for warning in warnings.iter().chain(file.warnings()) {
        output::warning(&format!("{}: {warning}", path.display()));
    }
    Ok(())
}
