//! Arms: the same questions uncapped, capped, and under caps on random directions.

use std::fmt;
use std::str::FromStr;

use axiscap::{BlockCap, Bound, CapSet};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Under which caps a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Arm {
    /// Under none.
    Uncapped,
    /// Under the caps that are evaluated.
    Capped,
    /// Under caps on random directions, the control with this number, from 1 on.
    Random(usize),
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uncapped => f.write_str("uncapped"),
            Self::Capped => f.write_str("capped"),
            Self::Random(number) => write!(f, "random-{number}"),
        }
    }
}

impl FromStr for Arm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let random = || text.strip_prefix("random-")?.parse().ok().filter(|&number| number > 0);
        match text {
            "uncapped" => Ok(Self::Uncapped),
            "capped" => Ok(Self::Capped),
            _ => random().map(Self::Random).ok_or_else(|| {
                format!("{text:?} is no arm; there are uncapped, capped, and random-1 and so on")
            }),
        }
    }
}

impl From<Arm> for String {
    fn from(arm: Arm) -> Self {
        arm.to_string()
    }
}

impl TryFrom<String> for Arm {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Arm {
    /// Returns all arms with a number of controls.
    #[must_use]
    pub fn all(controls: usize) -> Vec<Self> {
        [Self::Uncapped, Self::Capped].into_iter().chain((1..=controls).map(Self::Random)).collect()
    }
}

/// Returns caps that act as `acting` do, and measure the projections on the axes of `caps`, with the place of the
/// first measuring one. Where `acting` are these caps themselves, they measure.
pub(crate) fn observed(caps: &CapSet, acting: Option<&CapSet>) -> Result<(CapSet, usize), Error> {
    let Some(acting) = acting else { return Ok((caps.with_bounds(|_| Bound::NONE), 0)) };
    if acting == caps {
        return Ok((caps.clone(), 0));
    }
    let measuring = caps.with_bounds(|_| Bound::NONE);
    let all: Vec<BlockCap> = acting.caps().iter().chain(measuring.caps()).cloned().collect();
    Ok((CapSet::new(all)?.with_policy(caps.policy()), acting.caps().len()))
}

#[cfg(test)]
mod tests {
    use axiscap::{Axis, Cap};

    use super::*;

    #[test]
    fn arms_have_names() {
        for arm in Arm::all(2) {
            assert_eq!(arm.to_string().parse(), Ok(arm));
        }
        for wrong in ["", "random", "random-0", "random-x", "Capped"] {
            assert!(wrong.parse::<Arm>().is_err(), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&Arm::Random(1)).unwrap(), "\"random-1\"");
    }

    #[test]
    fn whatever_acts_the_axes_of_the_caps_are_measured_after_it() {
        let cap = |axis: &[f32], floor| {
            let cap = Cap::new(Axis::from_direction(axis).unwrap(), Bound::floor(floor).unwrap());
            BlockCap { block: 3, cap }
        };
        let caps = CapSet::new([cap(&[1.0, 0.0], 2.0)]).unwrap();
        let random = CapSet::new([cap(&[0.0, 1.0], 5.0)]).unwrap();
        assert_eq!(observed(&caps, Some(&caps)).unwrap(), (caps.clone(), 0));
        let (uncapped, place) = observed(&caps, None).unwrap();
        assert!(uncapped.caps()[place].cap.bound().is_none());
        let (both, place) = observed(&caps, Some(&random)).unwrap();
        assert_eq!((both.caps().len(), place), (2, 1));
        assert!(both.caps()[1].cap.bound().is_none());
        assert_eq!(both.caps()[1].cap.axis(), caps.caps()[0].cap.axis());
    }
}
