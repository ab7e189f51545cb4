//! Everything that a stream is given, captured as one graph and launched again and again.

use std::ptr;

use cudarc::driver::sys;

use super::device::Device;
use super::driver::check;
use super::error::CudaError;
use super::stream::Stream;

/// What was captured from a stream.
#[derive(Debug)]
pub struct CapturedGraph {
    device: Device,
    raw: sys::CUgraph,
}

/// A graph that can be launched.
#[derive(Debug)]
pub struct GraphExec {
    device: Device,
    raw: sys::CUgraphExec,
}

// SAFETY: a handle without ties to a thread, used by one thread at a time.
unsafe impl Send for CapturedGraph {}
// SAFETY: as above.
unsafe impl Send for GraphExec {}

impl Stream {
    /// Begins to capture: what the stream is given from now on does not run. Streams that wait for an event recorded
    /// here join the capture, and have to be joined back before its end. Relaxed: other threads, and calls that a
    /// capture cannot hold, go on as always.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn begin_capture(&self) -> Result<(), CudaError> {
        let _current = self.device().enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: our stream.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.as_ref().0, mode) })
    }

    /// Ends the capture, also where it fails.
    ///
    /// # Errors
    /// [`CudaError::Driver`]: what the stream was given cannot be a graph.
    pub fn end_capture(&self) -> Result<CapturedGraph, CudaError> {
        let _current = self.device().enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: our stream, and a valid pointer.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.as_ref().0, &mut raw) })?;
        Ok(CapturedGraph { device: self.device().clone(), raw })
    }

    /// Launches a graph and returns at once.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// Everything that the captured launches and copies use is still there, and stays until the stream has passed
    /// the graph.
    pub unsafe fn launch_graph(&self, graph: &GraphExec) -> Result<(), CudaError> {
        let _current = self.device().enter()?;
        // SAFETY: both live; the caller answers for what the graph uses.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.raw, self.as_ref().0) })
    }
}

impl CapturedGraph {
    /// Makes it launchable.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn instantiate(&self) -> Result<GraphExec, CudaError> {
        let _current = self.device.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: a live graph, and a valid pointer.
        check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, self.raw, 0) })?;
        Ok(GraphExec { device: self.device.clone(), raw })
    }
}

impl GraphExec {
    /// Takes over the arguments of another capture of the same topology.
    ///
    /// # Errors
    /// [`CudaError::Driver`], where the two differ in more; the graph must not be launched then.
    pub fn update(&mut self, captured: &CapturedGraph) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: a plain struct of numbers and pointers, for which zeros are valid.
        let mut result: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
        // SAFETY: both live, and a valid pointer.
        check("cuGraphExecUpdate", unsafe { sys::cuGraphExecUpdate_v2(self.raw, captured.raw, &mut result) })
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: ours, destroyed once; executable graphs made from it do not need it.
            let _ = unsafe { sys::cuGraphDestroy(self.raw) };
        }
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: ours, destroyed once; the driver keeps it while a launch is under way.
            let _ = unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
    }
}
