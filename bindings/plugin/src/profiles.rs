//! Which slots are under which caps: the variable AXISCAP_PROFILES.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use axiscap_ggml::{ModelCaps, SlotProfile};

use crate::caps::{self, CapsError};

/// What a value has to look like.
pub(crate) const EXPECTED: &str = "expected SLOT=PROFILE or FIRST-LAST=PROFILE, separated by commas, where PROFILE is \
     default, none or a cap file";

/// The profile of some slots.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SlotsProfile {
    slots: RangeInclusive<i32>,
    profile: Named,
}

#[derive(Debug, Clone, PartialEq)]
enum Named {
    Default,
    Uncapped,
    File(PathBuf),
}

/// Parses the variable.
pub(crate) fn parse(value: &OsStr) -> Option<Vec<SlotsProfile>> {
    value.to_str()?.split(',').map(parse_one).collect()
}

fn parse_one(text: &str) -> Option<SlotsProfile> {
    let (slots, profile) = text.split_once('=')?;
    let number = |text: &str| text.parse().ok().filter(|&number: &i32| number >= 0);
    let (first, last) = match slots.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(slots)?, number(slots)?),
    };
    let profile = match profile {
        "" => return None,
        "default" => Named::Default,
        "none" => Named::Uncapped,
        file => Named::File(file.into()),
    };
    (first <= last).then_some(SlotsProfile { slots: first..=last, profile })
}

/// Reads the cap files of profiles, with this strength in the place of their own, if there is one.
pub(crate) fn read(
    profiles: &[SlotsProfile],
    strength: Option<f32>,
) -> Result<Vec<(RangeInclusive<i32>, SlotProfile)>, CapsError> {
    let mut known: Vec<(&PathBuf, Arc<ModelCaps>)> = Vec::new();
    let mut read = Vec::with_capacity(profiles.len());
    for SlotsProfile { slots, profile } in profiles {
        let profile = match profile {
            Named::Default => SlotProfile::Default,
            Named::Uncapped => SlotProfile::Uncapped,
            Named::File(path) => {
                let caps = match known.iter().find(|(other, _)| *other == path) {
                    Some((_, caps)) => Arc::clone(caps),
                    None => {
                        let caps = caps::with_strength(&[caps::read_file(path)?], strength)?.remove(0);
                        Arc::new(caps)
                    }
                };
                known.push((path, Arc::clone(&caps)));
                SlotProfile::Caps(caps)
            }
        };
        read.push((slots.clone(), profile));
    }
    Ok(read)
}

/// Returns the caps of profiles, each once.
pub(crate) fn caps_of(slots: &[(RangeInclusive<i32>, SlotProfile)]) -> impl Iterator<Item = &ModelCaps> {
    let mut seen: Vec<*const ModelCaps> = Vec::new();
    slots.iter().filter_map(move |(_, profile)| match profile {
        SlotProfile::Caps(caps) if !seen.contains(&Arc::as_ptr(caps)) => {
            seen.push(Arc::as_ptr(caps));
            Some(&**caps)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_their_profiles() {
        let parsed = parse(OsStr::new("0=default,1-3=none,4=/etc/a=b.gguf")).unwrap();
        let expected =
            [(0..=0, Named::Default), (1..=3, Named::Uncapped), (4..=4, Named::File("/etc/a=b.gguf".into()))];
        assert_eq!(parsed, expected.map(|(slots, profile)| SlotsProfile { slots, profile }));
        for wrong in
            ["", "0", "0=", "=none", "a=none", "-1=none", "3-1=none", "0=none,", "1-=none", "1 =none"]
        {
            assert_eq!(parse(OsStr::new(wrong)), None, "{wrong:?}");
        }
    }
}
