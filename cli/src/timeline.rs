//! How `axiscap bench --timeline` reports where the time goes on a GPU.

use std::fmt;

use axiscap_llama::bench::Timeline;
use serde::Serialize;

/// Medians in microseconds, or why there are none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum TimelineReport {
    Taken { decodes: usize, graphs: Vec<Graph>, blocks: Vec<Block> },
    Missing { note: String },
}

#[derive(Debug, Serialize)]
pub(crate) struct Graph {
    device: String,
    /// Whether it was launched as one; nothing is known of its blocks then.
    replayed: bool,
    capped_blocks: usize,
    graphs: usize,
    us: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Block {
    block: usize,
    launches: usize,
    /// From the end of the view to where our stream may launch.
    handover_us: f64,
    launch_us: f64,
    /// From the end of the launch to where llama.cpp's stream goes on.
    handback_us: f64,
}

impl From<&Result<Timeline, String>> for TimelineReport {
    fn from(timeline: &Result<Timeline, String>) -> Self {
        let timeline = match timeline {
            Ok(timeline) => timeline,
            Err(why) => return Self::Missing { note: why.clone() },
        };
        let graph = |graph: &axiscap_llama::bench::GraphTimes| Graph {
            device: graph.device.clone(),
            replayed: graph.replayed,
            capped_blocks: graph.capped_blocks,
            graphs: graph.graphs,
            us: graph.micros,
        };
        let block = |block: &axiscap_llama::bench::BlockTimes| Block {
            block: block.block,
            launches: block.launches,
            handover_us: block.handover,
            launch_us: block.launch,
            handback_us: block.handback,
        };
        Self::Taken {
            decodes: timeline.decodes,
            graphs: timeline.graphs.iter().map(graph).collect(),
            blocks: timeline.blocks.iter().map(block).collect(),
        }
    }
}

impl fmt::Display for TimelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (decodes, graphs, blocks) = match self {
            Self::Missing { note } => return writeln!(f, "timeline: {note}"),
            Self::Taken { decodes, graphs, blocks } => (decodes, graphs, blocks),
        };
        writeln!(f, "timeline of {decodes} further decodes, medians in us")?;
        for graph in graphs {
            let what = if graph.replayed {
                "launched as one graph".into()
            } else {
                format!("in views, {} blocks capped", graph.capped_blocks)
            };
            writeln!(
                f,
                "{:<41}{:>11.1}   {} times",
                format!("{}, {what}", graph.device),
                graph.us,
                graph.graphs
            )?;
        }
        if !blocks.is_empty() {
            writeln!(f, "{:<41}{:>11}{:>11}{:>11}", "", "handover", "launch", "handback")?;
        }
        for block in blocks {
            let Block { block, handover_us, launch_us, handback_us, .. } = block;
            let name = format!("block {block}");
            writeln!(f, "{name:<41}{handover_us:>11.1}{launch_us:>11.1}{handback_us:>11.1}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axiscap_llama::bench::{BlockTimes, GraphTimes};

    use super::*;

    #[test]
    fn json_and_text_name_every_figure() {
        let graph = GraphTimes {
            device: "CUDA0".into(),
            replayed: false,
            capped_blocks: 1,
            graphs: 16,
            micros: 6500.25,
        };
        let block = BlockTimes { block: 20, launches: 16, handover: 2.5, launch: 4.0, handback: 3.25 };
        let taken =
            TimelineReport::from(&Ok(Timeline { decodes: 16, graphs: vec![graph], blocks: vec![block] }));
        let json = serde_json::to_value(&taken).unwrap();
        assert_eq!((&json["decodes"], &json["graphs"][0]["us"]), (&16.into(), &6500.25.into()));
        let times = ["handover_us", "launch_us", "handback_us"].map(|name| json["blocks"][0][name].as_f64());
        assert_eq!(times, [Some(2.5), Some(4.0), Some(3.25)]);
        let text = taken.to_string();
        assert!(text.contains("CUDA0, in views, 1 blocks capped") && text.contains("6500.2"), "{text}");
        assert!(text.contains("block 20"), "{text}");
        let missing = TimelineReport::from(&Err("there is no GPU timeline".into()));
        assert_eq!(serde_json::to_value(&missing).unwrap()["note"], "there is no GPU timeline");
        assert_eq!(missing.to_string(), "timeline: there is no GPU timeline\n");
    }
}
