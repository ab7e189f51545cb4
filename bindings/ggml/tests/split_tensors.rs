//! Two devices that compute the same rows of a block, as they do under LLAMA_SPLIT_MODE_TENSOR.

mod support;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_ggml::{HookError, ModelShape, Session};
use llama_cpp_sys_2 as sys;

/// Has a backend compute `l_out-0` of this many rows of two values.
///
/// # Safety
/// A live backend.
unsafe fn compute(backend: sys::ggml_backend_t, rows: i64) -> sys::ggml_status {
    let params =
        sys::ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true };
    // SAFETY: everything lives in the context and the buffer, which are freed at the end.
    unsafe {
        let context = sys::ggml_init(params);
        let leaf = || sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, 2, rows);
        let (a, b) = (leaf(), leaf());
        let sum = sys::ggml_add(context, a, b);
        sys::ggml_set_name(sum, c"l_out-0".as_ptr());
        let graph = sys::ggml_new_graph(context);
        sys::ggml_build_forward_expand(graph, sum);
        let buffer = sys::ggml_backend_alloc_ctx_tensors(context, backend);
        assert!(!buffer.is_null());
        sys::ggml_backend_buffer_clear(buffer, 0);
        let status = sys::ggml_backend_graph_compute(backend, graph);
        sys::ggml_backend_buffer_free(buffer);
        sys::ggml_free(context);
        status
    }
}

#[test]
fn devices_that_share_the_rows_of_a_block_are_refused() {
    let device = support::device();
    let hook = support::install();
    let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
    let cap = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::floor(1.0).unwrap());
    session.set_caps(Some(&CapSet::new([BlockCap { block: 0, cap }]).unwrap())).unwrap();
    // SAFETY: the device makes backends, which are freed at the end.
    let [one, two] = [(); 2]
        .map(|()| hook.bind(&session, || unsafe { sys::ggml_backend_dev_init(device, std::ptr::null()) }));
    let decode = |tokens: usize, graphs: &[(sys::ggml_backend_t, i64)]| {
        session.watch(tokens, tokens, || {
            // SAFETY: the backends from above.
            Ok(graphs.iter().all(|&(b, rows)| unsafe { compute(b, rows) } == sys::GGML_STATUS_SUCCESS))
        })
    };
    // One device after the other, as when the scheduler decides again for each micro-batch.
    assert_eq!(decode(5, &[(one, 3), (two, 2)]), Ok(true));
    assert_eq!(decode(4, &[(one, 2), (one, 2)]), Ok(true));
    assert_eq!(decode(3, &[(one, 3), (two, 3)]), Err(HookError::SplitTensors { block: 0 }));
    assert_eq!(
        decode(4, &[(one, 2), (two, 2), (one, 2), (two, 2)]),
        Err(HookError::SplitTensors { block: 0 })
    );
    assert_eq!(decode(3, &[(two, 3)]), Ok(true));
    // SAFETY: freed once.
    unsafe {
        sys::ggml_backend_free(one);
        sys::ggml_backend_free(two);
    }
}
