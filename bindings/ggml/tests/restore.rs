//! Alone in its process: the slots get their own functions back when the last user of the hook is gone.

mod support;

use axiscap_ggml::{ModelShape, Session};
use llama_cpp_sys_2 as sys;

fn slot(device: sys::ggml_backend_dev_t, offset: usize) -> usize {
    // SAFETY: the offset of a function pointer within the device, as the hook's report names it.
    unsafe { device.byte_add(offset).cast::<usize>().read() }
}

#[test]
fn every_slot_is_put_back_when_the_last_user_goes() {
    let device = support::device();
    let hook = support::install();
    let slots = hook.report().slots;
    let offset = |name: &str| slots.iter().find(|(n, _)| n.contains(name)).unwrap().1;
    let (init, compute) = (offset("init_backend"), offset("graph_compute"));
    let hooked = slot(device, init);
    drop(hook);
    let original = slot(device, init);
    assert_ne!(original, hooked);

    let again = support::install();
    let clone = support::install();
    assert_eq!(slot(device, init), hooked);
    let session = Session::new(ModelShape { architecture: "llama".into(), blocks: 1, width: 1 });
    // SAFETY: the device makes a backend; it is freed below. Both structures start with pointers, so the
    // offset of graph_compute can be read.
    unsafe {
        let unbound = sys::ggml_backend_dev_init(device, std::ptr::null());
        let bound = again.bind(&session, || sys::ggml_backend_dev_init(device, std::ptr::null()));
        assert!(session.is_bound());
        let compute = |backend: sys::ggml_backend_t| backend.byte_add(compute).cast::<usize>().read();
        assert_ne!(compute(bound), compute(unbound), "only the bound backend is hooked");
        drop((again, clone));
        assert_eq!(slot(device, init), hooked, "a hooked backend keeps the hook");
        sys::ggml_backend_free(bound);
        assert_eq!(slot(device, init), original, "the last one takes it away");
        let later = sys::ggml_backend_dev_init(device, std::ptr::null());
        assert_eq!(compute(later), compute(unbound));
        sys::ggml_backend_free(unbound);
        sys::ggml_backend_free(later);
    }
}
