//! Channels with massive activations: values so large that they hide every other channel in a mean.

use crate::activations::MeanActivations;
use crate::error::Error;
use crate::quantile::median;
use crate::rollout::Rollout;

/// A channel is massive in a block if its mean magnitude is above this,
const LEAST: f64 = 100.0;
/// and above this many times the median of the channels' magnitudes,
const TIMES_MEDIAN: f64 = 1000.0;
/// and farther from the median than this many times the median of such distances.
const TIMES_DEVIATION: f64 = 1000.0;
/// Maximum massive channels: more are a wide distribution and not a few channels.
const MOST: usize = 3;
/// A channel counts that is massive in this share of the blocks.
const BLOCKS: f64 = 0.25;

/// A channel with massive activations.
#[derive(Debug, Clone, PartialEq)]
pub struct MassiveChannel {
    /// The channel.
    pub channel: usize,
    /// The blocks where it is massive, and its mean magnitude there.
    pub blocks: Vec<(usize, f64)>,
}

/// Returns the channels that are massive in a quarter of the blocks, the largest first. The magnitude of a channel
/// is the mean, over all answers, of the absolute value of the answer's mean.
pub(super) fn channels(
    rollouts: &[Rollout],
    activations: &MeanActivations,
) -> Result<Vec<MassiveChannel>, Error> {
    let mut found = Vec::<MassiveChannel>::new();
    for block in 0..activations.blocks() {
        let means = activations.block(block)?;
        let mut magnitudes = vec![0f64; activations.width()];
        let mut count = 0usize;
        for (answer, _) in rollouts.iter().enumerate().filter(|(_, rollout)| !rollout.answer().is_empty()) {
            count += 1;
            let values = magnitudes.iter_mut().zip(means.answer(answer));
            values.for_each(|(sum, &value)| *sum += f64::from(value.abs()));
        }
        magnitudes.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
        for channel in massive(&magnitudes) {
            let at = (block, magnitudes[channel]);
            match found.iter_mut().find(|known| known.channel == channel) {
                Some(known) => known.blocks.push(at),
                None => found.push(MassiveChannel { channel, blocks: vec![at] }),
            }
        }
    }
    found.retain(|channel| channel.blocks.len() as f64 >= BLOCKS * activations.blocks() as f64);
    let largest = |channel: &MassiveChannel| channel.blocks.iter().fold(0f64, |most, &(_, v)| most.max(v));
    found.sort_by(|a, b| largest(b).total_cmp(&largest(a)));
    found.truncate(MOST);
    Ok(found)
}

/// Returns the massive channels of one block. None if there are more than [`MOST`].
fn massive(magnitudes: &[f64]) -> Vec<usize> {
    let middle = median(magnitudes.iter().copied());
    let deviation = median(magnitudes.iter().map(|value| (value - middle).abs()));
    let is_massive = |&&value: &&f64| {
        value > LEAST
            && value > TIMES_MEDIAN * middle
            && (value - middle).abs() > TIMES_DEVIATION * deviation
            && value.is_finite()
    };
    let found: Vec<usize> = (0..magnitudes.len()).filter(|&i| is_massive(&&magnitudes[i])).collect();
    if found.len() > MOST { Vec::new() } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_channels_far_out_are_massive() {
        let mut magnitudes: Vec<f64> = (0..50).map(|i| 0.1 + f64::from(i) * 0.001).collect();
        assert!(massive(&magnitudes).is_empty());
        magnitudes[7] = 5000.0;
        magnitudes[31] = 120.0;
        // A thousand times the median is 124.
        assert_eq!(massive(&magnitudes), [7]);
        magnitudes[31] = 200.0;
        assert_eq!(massive(&magnitudes), [7, 31]);
        magnitudes[1..4].fill(900.0);
        assert!(massive(&magnitudes).is_empty(), "five channels are not few");
        assert!(massive(&[]).is_empty());
    }
}
