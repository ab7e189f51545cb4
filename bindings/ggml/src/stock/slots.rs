//! What the sequences of a context are capped with, where they are not all alike. A server calls them slots.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::models::ModelCaps;
use crate::error::HookError;
use crate::profile::ProfileId;
use crate::session::Session;
use crate::tally::Tally;

/// What a slot is capped with.
#[derive(Debug, Clone)]
pub enum SlotProfile {
    /// The caps of the model, as without profiles.
    Default,
    /// Nothing.
    Uncapped,
    /// Other caps of the same model.
    Caps(Arc<ModelCaps>),
}

/// The profiles of slots, by the numbers of sequences. The last entry that names a slot counts.
#[derive(Debug)]
pub(super) struct SlotProfiles {
    pub(super) list: Vec<(RangeInclusive<i32>, SlotProfile)>,
    /// Where the rows of caps are counted, if totals are kept.
    pub(super) tallies: Vec<(Arc<ModelCaps>, Arc<Tally>)>,
}

/// The profiles of the slots of one context.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Vec<(RangeInclusive<i32>, Slot)>);

#[derive(Debug, Clone)]
enum Slot {
    Profile(Option<ProfileId>),
    /// The caps of this name are for another model.
    Misfit {
        caps: String,
        reason: String,
    },
}

impl Slots {
    /// Adds the profiles to the session of a context, which these norms are known of.
    ///
    /// # Errors
    /// Those of [`Session::add_profile`].
    pub(super) fn add_to(
        session: &Session,
        profiles: &SlotProfiles,
        known: &[(String, [u8; 32])],
    ) -> Result<Self, HookError> {
        let mut added: Vec<(*const ModelCaps, ProfileId)> = Vec::new();
        let mut slots = Vec::with_capacity(profiles.list.len());
        for (range, profile) in &profiles.list {
            let slot = match profile {
                SlotProfile::Default => Slot::Profile(Some(ProfileId::DEFAULT)),
                SlotProfile::Uncapped => Slot::Profile(None),
                SlotProfile::Caps(caps) => match caps.fit_known(session.model(), known) {
                    Err(misfit) => Slot::Misfit { caps: caps.name.clone(), reason: misfit.to_string() },
                    Ok(_) => {
                        let address = Arc::as_ptr(caps);
                        let id = match added.iter().find(|(known, _)| *known == address) {
                            Some(&(_, id)) => id,
                            None => {
                                let mut tallies = profiles.tallies.iter();
                                let tally = tallies.find(|(of, _)| Arc::ptr_eq(of, caps));
                                let tally = tally.map(|(_, tally)| Arc::clone(tally));
                                session.add_counted_profile(&caps.name, &caps.caps, tally)?
                            }
                        };
                        added.push((address, id));
                        Slot::Profile(Some(id))
                    }
                },
            };
            slots.push((range.clone(), slot));
        }
        Ok(Self(slots))
    }

    /// Returns the profile of a sequence.
    ///
    /// # Errors
    /// [`HookError::ProfileMisfit`].
    pub(crate) fn profile_of(&self, sequence: i32) -> Result<Option<ProfileId>, HookError> {
        let named = self.0.iter().rfind(|(range, _)| range.contains(&sequence));
        match named.map(|(_, slot)| slot) {
            None => Ok(Some(ProfileId::DEFAULT)),
            Some(&Slot::Profile(profile)) => Ok(profile),
            Some(Slot::Misfit { caps, reason }) => {
                Err(HookError::ProfileMisfit { slot: sequence, caps: caps.clone(), reason: reason.clone() })
            }
        }
    }
}
