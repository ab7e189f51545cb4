//! Two devices that compute the same rows of a block, as they do under LLAMA_SPLIT_MODE_TENSOR.

mod support;

use axiscap::{Axis, BlockCap, Bound, Cap, CapSet};
use axiscap_ggml::{HookError, ModelShape, Session};
use llama_cpp_sys_2 as sys;

/// Has a backend compute `l_out-0` of this many rows of two values.
///
/// # Safety
/// A live backend of the CPU.
unsafe fn compute(backend: sys::ggml_backend_t, rows: i64) -> sys::ggml_status {
    let params =
        sys::ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: false };
    // SAFETY: everything lives in the context, which is freed at the end.
    unsafe {
        let context = sys::ggml_init(params);
        let leaf = || sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, 2, rows);
        let (a, b) = (leaf(), leaf());
        for t in [a, b] {
            (*t).data.write_bytes(0, sys::ggml_nbytes(t));
        }
        let sum = sys::ggml_add(context, a, b);
        sys::ggml_set_name(sum, c"l_out-0".as_ptr());
        let graph = sys::ggml_new_graph(context);
        sys::ggml_build_forward_expand(graph, sum);
        let status = sys::ggml_backend_graph_compute(backend, graph);
        sys::ggml_free(context);
        status
    }
}

#[test]
fn devices_that_share_the_rows_of_a_block_are_refused() {
    // SAFETY: llama_backend_init may be called at any time; the device list is a plain query.
    let device = unsafe {
        sys::llama_backend_init();
        sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU)
    };
    let hook = support::install();
    let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 2 });
    let cap = Cap::new(Axis::from_direction(&[1.0, 2.0]).unwrap(), Bound::floor(1.0).unwrap());
    session.set_caps(Some(&CapSet::new([BlockCap { block: 0, cap }]).unwrap())).unwrap();
    // SAFETY: the CPU device makes backends, which are freed at the end.
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
