//! The same caps through llama.cpp's own evaluation callback.

use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axiscap::cpu::{Job, RowsMut};
use axiscap::{CapSet, CapTable, RowStat};
use llama_cpp_sys_2 as sys;

use axiscap_ggml::{BlockNames, HookError, ModelShape, Seen};

/// Caps through `llama_context_params.cb_eval`.
///
/// ggml computes up to each capped block output, waits for it, and calls. That is one host synchronise per
/// capped block and micro-batch. The rows have the bits of the hook's.
#[derive(Debug)]
pub(super) struct EvalCallback {
    state: Box<State>,
}

#[derive(Debug)]
struct State {
    names: BlockNames,
    model: ModelShape,
    /// By block.
    tables: Vec<Option<CapTable>>,
    statistics: bool,
    work: Mutex<Work>,
}

#[derive(Debug, Default)]
struct Work {
    staging: Vec<f32>,
    stats: Vec<RowStat>,
    /// By block, the rows seen since the decode began.
    seen: Vec<Option<usize>>,
    error: Option<HookError>,
}

impl EvalCallback {
    /// Creates a callback that applies these caps. It must outlive the context that it is given to. With
    /// `statistics` the caps compute them, and they are dropped.
    ///
    /// # Errors
    /// [`HookError::Architecture`], and [`HookError::Caps`] when the caps do not fit the model.
    pub(super) fn new(model: &ModelShape, caps: &CapSet, statistics: bool) -> Result<Self, HookError> {
        let names = model.block_names()?;
        caps.check_model(model.width, model.blocks)?;
        let mut tables = vec![None; model.blocks];
        for (block, indices) in caps.blocks() {
            tables[block] = Some(CapTable::new(indices.iter().map(|&i| &caps.caps()[i].cap))?);
        }
        let work = Mutex::new(Work { seen: vec![None; model.blocks], ..Work::default() });
        Ok(Self { state: Box::new(State { names, model: model.clone(), tables, statistics, work }) })
    }

    /// Returns the value for `llama_context_params.cb_eval`.
    #[must_use]
    pub(super) fn function(&self) -> sys::ggml_backend_sched_eval_callback {
        Some(evaluate)
    }

    /// Returns the value for `llama_context_params.cb_eval_user_data`.
    #[must_use]
    pub(super) fn user_data(&self) -> *mut c_void {
        std::ptr::from_ref::<State>(&self.state).cast_mut().cast()
    }

    /// Runs one `llama_decode` of `rows` tokens, `outputs` of them with logits, and checks that it was
    /// capped, as [`Session::watch`](axiscap_ggml::Session::watch) does.
    ///
    /// # Errors
    /// The first error of the callback, the error of `decode`, or [`HookError::NotSeen`].
    pub(super) fn watch<R, E: From<HookError>>(
        &self,
        rows: usize,
        outputs: usize,
        decode: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        self.state.work().seen.fill(None);
        let result = decode();
        let mut work = self.state.work();
        if let Some(error) = work.error.take() {
            return Err(error.into());
        }
        let result = result?;
        let last = self.state.model.blocks.wrapping_sub(1);
        for (block, _) in self.state.tables.iter().enumerate().filter(|(_, table)| table.is_some()) {
            let seen = match work.seen[block] {
                None => Seen::Never,
                Some(n) if n == rows || (block == last && n == outputs) => continue,
                Some(n) => Seen::Rows(n),
            };
            return Err(HookError::NotSeen { block, seen, rows, outputs }.into());
        }
        Ok(result)
    }
}

unsafe extern "C" fn evaluate(tensor: *mut sys::ggml_tensor, ask: bool, user_data: *mut c_void) -> bool {
    // SAFETY: user_data is the `State` that `EvalCallback::user_data` returned, which outlives the context.
    let state = unsafe { &*user_data.cast::<State>() };
    let evaluated = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: llama.cpp calls with a valid node, computed unless it asks.
        unsafe { state.evaluate(tensor, ask) }
    }));
    match evaluated {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => state.fail(error),
        Err(_) => state.fail(HookError::Panic("in the evaluation callback".into())),
    }
}

impl State {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an error. Returns the answer that continues after a question, and that ends the computation
    /// after a result.
    fn fail(&self, error: HookError) -> bool {
        self.work().error.get_or_insert(error);
        false
    }

    /// Answers a question with whether the node is a capped block output, and a result with whether to
    /// continue.
    ///
    /// # Safety
    /// `tensor` must be a valid node. Unless `ask` is true, its backend must have computed it and be idle.
    unsafe fn evaluate(&self, tensor: *mut sys::ggml_tensor, ask: bool) -> Result<bool, HookError> {
        // SAFETY: the name is an array within the node, NUL-terminated by ggml.
        let name = unsafe { CStr::from_ptr((&raw const (*tensor).name).cast()) };
        let Some(block) = self.names.block_of(name.to_bytes()) else { return Ok(!ask) };
        let Some(table) = self.tables.get(block).and_then(Option::as_ref) else { return Ok(!ask) };
        if !ask {
            // SAFETY: the caller promises that the node was computed and that its backend is idle.
            unsafe { self.cap(tensor, name, block, table)? };
        }
        Ok(true)
    }

    /// # Safety
    /// `tensor` must be a valid node that its backend has computed, and the backend must be idle.
    unsafe fn cap(
        &self,
        tensor: *mut sys::ggml_tensor,
        name: &CStr,
        block: usize,
        table: &CapTable,
    ) -> Result<(), HookError> {
        // SAFETY: the caller promises a valid node.
        let t = unsafe { &*tensor };
        let width = self.model.width;
        let fits = t.type_ == sys::GGML_TYPE_F32
            && t.ne[0] == width as i64
            && t.ne[1] >= 0
            && t.ne[2..] == [1, 1]
            && t.nb[0] == size_of::<f32>()
            && t.nb[1].is_multiple_of(size_of::<f32>())
            && t.nb[1] >= width * size_of::<f32>();
        if !fits {
            return Err(HookError::Shape {
                block,
                node: String::from_utf8_lossy(name.to_bytes()).into_owned(),
                found: format!("of type {} with shape {:?} and strides {:?}", t.type_, t.ne, t.nb),
                expected: format!("f32 (type 0) of shape [{width}, tokens]"),
            });
        }
        let (rows, stride) = (t.ne[1] as usize, t.nb[1] / size_of::<f32>());
        let mut work = self.work();
        let Work { staging, stats, seen, .. } = &mut *work;
        *seen[block].get_or_insert(0) += rows;
        if rows == 0 {
            return Ok(());
        }
        stats.clear();
        stats.resize(if self.statistics { rows * table.cap_count() } else { 0 }, RowStat::default());
        // SAFETY: the rows are complete and only this call uses them. `staging` holds as many bytes as the
        // tensor.
        unsafe {
            let buffer = if t.view_src.is_null() { t.buffer } else { (*t.view_src).buffer };
            let on_host = !buffer.is_null() && sys::ggml_backend_buffer_is_host(buffer);
            let bytes = sys::ggml_nbytes(tensor);
            let data = if on_host {
                t.data.cast::<f32>()
            } else {
                staging.resize(bytes.div_ceil(size_of::<f32>()), 0.0);
                sys::ggml_backend_tensor_get(tensor, staging.as_mut_ptr().cast(), 0, bytes);
                staging.as_mut_ptr()
            };
            let job = Job::cap(RowsMut::from_raw(data, rows, width, stride)?);
            let job = if self.statistics { job.stats(stats) } else { job };
            job.run(table)?;
            if !on_host {
                sys::ggml_backend_tensor_set(tensor, data.cast(), 0, bytes);
            }
        }
        Ok(())
    }
}
