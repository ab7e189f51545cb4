//! The work of a stream, captured as a graph and launched repeatedly.

use std::ptr;

use cudarc::driver::sys;

use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::cuda::error::CudaError;
use crate::cuda::stream::Stream;

/// A graph that was captured from a stream.
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

// SAFETY: a graph handle is not bound to a thread. It is not `Sync`, so one thread at a time uses it.
unsafe impl Send for CapturedGraph {}
// SAFETY: an executable graph's handle is not bound to a thread. It is not `Sync`, so one thread at a time
// uses it.
unsafe impl Send for GraphExec {}

impl Stream {
    /// Begins a capture. Work that is put on the stream from now on is recorded and does not run.
    ///
    /// Streams that wait for an event recorded on this stream join the capture, and have to be joined back
    /// before it ends. The mode is relaxed: other threads, and calls that a capture cannot hold, are not
    /// restricted.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn begin_capture(&self) -> Result<(), CudaError> {
        let _current = self.device().enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours, and its context is current.
        Ok(check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.handle().0, mode) })?)
    }

    /// Ends the capture. It has ended as well if this fails.
    ///
    /// # Errors
    /// [`CudaError::Driver`], if the work of the stream cannot be a graph.
    pub fn end_capture(&self) -> Result<CapturedGraph, CudaError> {
        let _current = self.device().enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the stream is ours, and the pointer is valid.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.handle().0, &mut raw) })?;
        Ok(CapturedGraph { device: self.device().clone(), raw })
    }

    /// Launches a graph and returns at once.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// All memory that the captured launches and copies use is still allocated, and stays so until the stream
    /// has passed the graph.
    pub unsafe fn launch_graph(&self, graph: &GraphExec) -> Result<(), CudaError> {
        let _current = self.device().enter()?;
        // SAFETY: graph and stream are live. The caller promises the memory that the graph uses.
        Ok(check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.raw, self.handle().0) })?)
    }
}

impl CapturedGraph {
    /// Makes an executable graph.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn instantiate(&self) -> Result<GraphExec, CudaError> {
        let _current = self.device.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the graph is live, and the pointer is valid.
        check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, self.raw, 0) })?;
        Ok(GraphExec { device: self.device.clone(), raw })
    }
}

impl GraphExec {
    /// Takes the arguments of another capture with the same topology.
    ///
    /// # Errors
    /// [`CudaError::Driver`], if the two differ in more than arguments. The graph must not be launched then.
    pub fn update(&mut self, captured: &CapturedGraph) -> Result<(), CudaError> {
        let _current = self.device.enter()?;
        // SAFETY: the struct consists of numbers and pointers, for which zeros are valid.
        let mut result: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
        // SAFETY: both graphs are live, and the pointer is valid.
        let updated = unsafe { sys::cuGraphExecUpdate_v2(self.raw, captured.raw, &mut result) };
        Ok(check("cuGraphExecUpdate", updated)?)
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        self.device.on_drop(|| {
            // SAFETY: the graph is ours and destroyed once. Executable graphs made from it do not need it.
            check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(self.raw) })
        });
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        self.device.on_drop(|| {
            // SAFETY: the graph is ours and destroyed once. The driver keeps it until pending launches are
            // done.
            check("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(self.raw) })
        });
    }
}
