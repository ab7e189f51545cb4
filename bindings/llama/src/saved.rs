//! Saved sequences: the state that llama.cpp keeps of a sequence, with what its rows were capped under.

use axiscap::file::NormDigest;
use axiscap_ggml::{CapDigest, DecodeRow, ProfileId, ProfileInfo};
use llama_cpp_2::context::session::{LlamaStateSeqFlags, SeqState};

use crate::Token;
use crate::cached::CachedRow;
use crate::context::Context;
use crate::error::Error;
use crate::model::Model;
use crate::schedule::revision;

/// The state of a sequence, kept apart from its context. It can be restored to contexts of the same model
/// under the same caps.
#[derive(Debug, Clone)]
pub struct SavedSequence {
    state: SeqState,
    model: ModelIdentity,
    tokens: Vec<Token>,
    /// The caps that each row was computed under. `None` for a row that was left alone.
    caps: Vec<Option<CapDigest>>,
}

/// What tells one model from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelIdentity {
    shape: axiscap_ggml::ModelShape,
    name: Option<String>,
    parameters: u64,
    bytes: u64,
    vocabulary: usize,
    /// Digests of the norms, which fine-tunes of the same name do not share. `None` if the files were not there any
    /// more when they were asked for.
    norms: Option<Vec<NormDigest>>,
}

impl ModelIdentity {
    fn of(model: &Model) -> Self {
        Self {
            shape: model.shape().clone(),
            name: model.metadata("general.name"),
            parameters: model.llama().n_params(),
            bytes: model.llama().size(),
            vocabulary: model.vocab_size(),
            norms: model.norms_at_first().map(<[_]>::to_vec),
        }
    }
}

impl SavedSequence {
    /// Returns the tokens of the sequence.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Returns the caps that each row was computed under. `None` for a row that was left alone.
    #[must_use]
    pub fn caps(&self) -> &[Option<CapDigest>] {
        &self.caps
    }

    /// Returns the size of the state in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state.byte_len()
    }
}

impl Context<'_> {
    /// Saves a sequence with a digest of the caps that each of its rows was computed under.
    ///
    /// # Errors
    /// [`Error::Sequence`], and [`Error::Saved`] where the rows' caps are not known any more: they were
    /// changed or removed since.
    pub fn save_sequence(&self, sequence: i32) -> Result<SavedSequence, Error> {
        self.check_sequence(sequence)?;
        let rows = self.cached.rows(sequence);
        let rows =
            rows.ok_or_else(|| refused(sequence, "it is not known what its rows were capped under"))?;
        let active = self.active_profiles();
        let digests = digests(self, &active)?;
        let mut caps = Vec::with_capacity(rows.len());
        for row in rows {
            let digest = row.revision.map(|revision| {
                let known = digests.iter().find(|(profile, _)| profile.revision == revision);
                known.map(|&(_, digest)| digest)
            });
            caps.push(match digest {
                None => None,
                Some(Some(digest)) => Some(digest),
                Some(None) => {
                    return Err(refused(sequence, "its rows were capped under caps that have changed since"));
                }
            });
        }
        let state = self.llama().state_seq_get(sequence, LlamaStateSeqFlags::empty());
        let state = state.map_err(|error| refused(sequence, &error.to_string()))?;
        let tokens = rows.iter().map(|row| row.token).collect();
        Ok(SavedSequence { state, model: ModelIdentity::of(self.model()), tokens, caps })
    }

    /// Restores a saved sequence, in the place of what `sequence` holds. Each row must have been computed under
    /// the caps that the sequence is under now.
    ///
    /// # Errors
    /// [`Error::Sequence`], and [`Error::Saved`] for another model, other caps, or a context that cannot hold
    /// the state.
    pub fn restore_sequence(&mut self, saved: &SavedSequence, sequence: i32) -> Result<(), Error> {
        self.follow(sequence)?;
        let profiles = (0..saved.tokens.len()).map(|position| {
            let position = i32::try_from(position).unwrap_or(i32::MAX);
            self.schedules.profile_of(sequence, position)
        });
        let profiles: Vec<_> = profiles.collect();
        self.restore_sequence_under(saved, sequence, &profiles)
    }

    /// As [`Context::restore_sequence`], with one profile per row in the place of that of the sequence.
    ///
    /// # Errors
    /// Those of [`Context::restore_sequence`].
    ///
    /// # Panics
    /// If there is not one profile per row.
    pub fn restore_sequence_under(
        &mut self,
        saved: &SavedSequence,
        sequence: i32,
        profiles: &[Option<ProfileId>],
    ) -> Result<(), Error> {
        assert_eq!(saved.tokens.len(), profiles.len(), "one profile per row");
        self.check_sequence(sequence)?;
        if ModelIdentity::of(self.model()) != saved.model {
            return Err(refused(sequence, "it was saved from another model"));
        }
        let active = self.active_profiles();
        let digests = digests(self, &active)?;
        let mut rows = Vec::with_capacity(saved.tokens.len());
        for (position, ((&token, &caps), &profile)) in
            saved.tokens.iter().zip(&saved.caps).zip(profiles).enumerate()
        {
            let at = i32::try_from(position).unwrap_or(i32::MAX);
            let now = revision(&active, &DecodeRow { token: token.0, position: at, profile, output: false });
            let digest =
                digests.iter().find(|(known, _)| Some(known.revision) == now).map(|&(_, digest)| digest);
            if digest != caps {
                let text =
                    |digest: Option<CapDigest>| digest.map_or("none".into(), |digest| digest.to_string());
                return Err(refused(
                    sequence,
                    &format!(
                        "its row at position {position} was computed under other caps (digest {}, now {})",
                        text(caps),
                        text(digest)
                    ),
                ));
            }
            rows.push(CachedRow { token, revision: now });
        }
        self.truncate(sequence, 0)?;
        let restored = self.llama_mut().state_seq_set(&saved.state, sequence);
        if let Err(error) = restored {
            // A part of it may have been restored.
            self.truncate(sequence, 0)?;
            return Err(refused(sequence, &format!("llama.cpp cannot restore it here: {error}")));
        }
        self.cached.replace(sequence, rows);
        Ok(())
    }
}

/// Returns the digest of each profile's caps.
fn digests<'p>(
    context: &Context<'_>,
    active: &'p [ProfileInfo],
) -> Result<Vec<(&'p ProfileInfo, CapDigest)>, Error> {
    if active.is_empty() {
        return Ok(Vec::new());
    }
    let session = context.session()?;
    let digest = |profile: &'p ProfileInfo| {
        session.profile_caps(profile.id).map(|caps| (profile, CapDigest::of(&caps)))
    };
    Ok(active.iter().filter_map(digest).collect())
}

fn refused(sequence: i32, reason: &str) -> Error {
    Error::Saved { sequence, reason: reason.into() }
}
