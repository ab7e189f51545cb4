//! Names of the routes, and the caller's choice among them.

use std::fmt;

/// How the hook computed a graph, or a block of it, with its caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// As ggml does without the hook. There was no row to cap.
    Untouched,
    /// With a cap node after each capped block output, which runs on ggml's own worker threads.
    Inserted,
    /// In views that end at the capped block outputs, with caps on the host between them.
    HostViews,
    /// In views that end at the capped block outputs, with caps on the GPU between them, in stream order.
    GpuViews,
    /// As [`Route::GpuViews`], with the norm after the block in the same launch as its caps.
    GpuViewsFusedNorm,
    /// As one captured CUDA graph of nodes and caps, which was replayed.
    OneGraph,
    /// As ggml does without the hook, on an RPC server that caps the blocks. Their statistics are the server's.
    Remote,
    /// By a compute hook, described by the text.
    Custom(&'static str),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "the graph runs as without the hook",
            Self::Inserted => "caps are nodes in the backend's own graph",
            Self::HostViews => "the graph is cut at capped blocks, caps run on the host",
            Self::GpuViews => "the graph is cut at capped blocks, caps run on the GPU in stream order",
            Self::GpuViewsFusedNorm => {
                "the graph is cut at capped blocks, caps and the norm after them run as one on the GPU"
            }
            Self::OneGraph => "the graph and its caps are captured as one and replayed on the GPU",
            Self::Remote => "the RPC server that computes the graph caps it",
            Self::Custom(text) => text,
        })
    }
}

/// The route that the caller asks for. All of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum RouteChoice {
    /// Inserted nodes on ggml's CPU backend, [`RouteChoice::OneGraph`] on its CUDA backend, views elsewhere.
    #[default]
    Auto,
    /// Cap nodes in ggml's own graph, run by its worker threads between its barriers. CPU backend only. Other
    /// backends use views.
    Inserted,
    /// Views that end at the capped block outputs. The caps between them run on the GPU on ggml's CUDA
    /// backend, on the host elsewhere.
    Views,
    /// On ggml's CUDA backend, one CUDA graph of the graph and its caps, captured once and replayed whenever
    /// llama.cpp computes the same graph again. With a ggml other than 0.26 it requires
    /// `GGML_CUDA_DISABLE_GRAPHS` in the environment from the start of the process, and is views without. On
    /// other backends the same as [`RouteChoice::Auto`].
    OneGraph,
}
