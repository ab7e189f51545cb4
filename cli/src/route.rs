//! The option about how the hook computes graphs.

use axiscap_llama::RouteChoice;
use clap::ValueEnum;

/// How a graph is computed with its caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteArg {
    /// What suits the backend: inserted on the CPU, one-graph on CUDA, views elsewhere
    Auto,
    /// Caps as nodes of ggml's own graph; on the CPU only, elsewhere as views
    Inserted,
    /// Caps between pieces of the graph
    Views,
    /// Graph and caps as one CUDA graph; on CUDA only, elsewhere as auto
    #[value(alias = "device-graph")]
    OneGraph,
}

impl From<RouteArg> for RouteChoice {
    fn from(route: RouteArg) -> Self {
        match route {
            RouteArg::Auto => Self::Auto,
            RouteArg::Inserted => Self::Inserted,
            RouteArg::Views => Self::Views,
            RouteArg::OneGraph => Self::OneGraph,
        }
    }
}
