//! Where the time goes on a GPU: a few decodes after the measurement, timed by events.

use std::collections::BTreeMap;

use axiscap_ggml::{GraphTimeline, HookError};

use super::Subject;
use super::ratio::{median, sorted};
use crate::Token;
use crate::error::Error;

/// Decodes that are timed.
pub(super) const DECODES: usize = 16;

/// Medians over a few timed decodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// Decodes that were timed.
    pub decodes: usize,
    /// The graphs with capped blocks, by what distinguishes them.
    pub graphs: Vec<GraphTimes>,
    /// Capped blocks, ascending. Empty where all graphs were launched as one.
    pub blocks: Vec<BlockTimes>,
}

/// Graphs of one device that cap equally many blocks, or were replayed.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphTimes {
    /// ggml's name of the device.
    pub device: String,
    /// Whether they were launched as one; how many blocks they cap is not known then.
    pub replayed: bool,
    /// Blocks capped in each.
    pub capped_blocks: usize,
    /// How many were timed.
    pub graphs: usize,
    /// Median time on the backend's stream from begin to end, in microseconds.
    pub micros: f64,
}

/// The caps of one block, medians in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTimes {
    /// The block.
    pub block: usize,
    /// How many launches were timed.
    pub launches: usize,
    /// From the end of the view to where our stream may launch.
    pub handover: f64,
    /// The launch.
    pub launch: f64,
    /// From the end of the launch to where the backend's stream goes on.
    pub handback: f64,
}

/// Decodes further tokens of `text`, one of each sequence at a time from `position` on, and times them. The inner error
/// says why there is no timeline.
pub(super) fn take(
    subject: &mut dyn Subject,
    text: &[Token],
    sequences: usize,
    position: usize,
) -> Result<Result<Timeline, String>, Error> {
    let Some(session) = subject.session().cloned() else { return Err(Error::NotHooked) };
    session.set_timeline(true);
    for (tokens, position) in text.chunks(sequences).zip(position..) {
        subject.step(tokens, position)?;
    }
    session.set_timeline(false);
    match session.take_timeline() {
        Ok(graphs) => Ok(Ok(Timeline::of(&graphs, text.len() / sequences))),
        Err(error @ HookError::NoTimeline) => Ok(Err(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

impl Timeline {
    fn of(timed: &[GraphTimeline], decodes: usize) -> Self {
        let mut graphs = BTreeMap::<_, Vec<f64>>::new();
        let mut blocks = BTreeMap::<_, [Vec<f64>; 3]>::new();
        for graph in timed {
            let kind = (graph.device.clone(), graph.replayed, graph.blocks.len());
            graphs.entry(kind).or_default().push(graph.micros);
            for timing in &graph.blocks {
                let times = blocks.entry(timing.block).or_default();
                for (times, micros) in times.iter_mut().zip([timing.handover, timing.launch, timing.handback])
                {
                    times.push(micros);
                }
            }
        }
        let graphs = graphs.into_iter().map(|((device, replayed, capped_blocks), times)| GraphTimes {
            device,
            replayed,
            capped_blocks,
            graphs: times.len(),
            micros: median(&sorted(times)),
        });
        let blocks = blocks.into_iter().map(|(block, times)| {
            let launches = times[0].len();
            let [handover, launch, handback] = times.map(|times| median(&sorted(times)));
            BlockTimes { block, launches, handover, launch, handback }
        });
        Self { decodes, graphs: graphs.collect(), blocks: blocks.collect() }
    }
}

#[cfg(test)]
mod tests {
    use axiscap_ggml::BlockTiming;

    use super::*;

    #[test]
    fn medians_are_per_block_and_kind_of_graph() {
        let timing = |block, launch| BlockTiming { block, rows: 1, handover: 2.0, launch, handback: 3.0 };
        let graph = |device: &str, micros, blocks: Vec<_>| GraphTimeline {
            device: device.into(),
            micros,
            replayed: false,
            blocks,
        };
        let timed = [
            graph("CUDA0", 100.0, vec![timing(3, 5.0), timing(4, 6.0)]),
            graph("CUDA1", 50.0, vec![timing(9, 7.0)]),
            graph("CUDA0", 110.0, vec![timing(3, 9.0), timing(4, 6.0)]),
            graph("CUDA0", 900.0, vec![timing(3, 7.0), timing(4, 8.0)]),
            GraphTimeline { replayed: true, ..graph("CUDA0", 80.0, Vec::new()) },
        ];
        let found = Timeline::of(&timed, 3);
        let graphs: Vec<_> = found
            .graphs
            .iter()
            .map(|g| (g.device.as_str(), g.replayed, g.capped_blocks, g.graphs, g.micros))
            .collect();
        assert_eq!(
            graphs,
            [("CUDA0", false, 2, 3, 110.0), ("CUDA0", true, 0, 1, 80.0), ("CUDA1", false, 1, 1, 50.0)]
        );
        let blocks: Vec<_> = found.blocks.iter().map(|b| (b.block, b.launches, b.launch)).collect();
        assert_eq!(blocks, [(3, 3, 7.0), (4, 3, 6.0), (9, 1, 7.0)]);
        assert_eq!((found.blocks[0].handover, found.blocks[0].handback), (2.0, 3.0));
    }
}
