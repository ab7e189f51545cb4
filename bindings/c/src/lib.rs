//! The C interface of `axiscap`: cap files, tables of caps, and calls on rows in host and in device memory.
//!
//! `include/axiscap.h` is made from this crate and describes every function. `docs/c.md` says how to build
//! and link. A Rust program uses the crate `axiscap` instead.
//!
//! | part | contents |
//! |---|---|
//! | [`Status`], [`axiscap_last_error`] | errors |
//! | [`Caps`] | a cap file in memory: what it holds, and other bounds and strengths |
//! | [`Table`] | the caps of one block |
//! | [`Job`], [`axiscap_run`] | a call, and running it on the CPU |
//! | [`Device`], [`DeviceTable`], [`axiscap_launch`] | the same on a GPU |

mod caps;
mod failure;
mod gpu;
mod guard;
mod job;
mod last_error;
mod pointer;
mod status;
mod table;
mod text;
mod version;

pub use caps::blocks::axiscap_caps_blocks;
pub use caps::cap::{CapInfo, axiscap_caps_get, axiscap_caps_set_bound, axiscap_caps_set_strength};
pub use caps::describe::{CapsInfo, axiscap_caps_check_model, axiscap_caps_describe};
pub use caps::open::{Caps, axiscap_caps_free, axiscap_caps_parse, axiscap_caps_read};
pub use gpu::device::{
    Device, DeviceInfo, axiscap_device_count, axiscap_device_describe, axiscap_device_free,
    axiscap_device_open,
};
pub use gpu::device_table::{
    DeviceTable, axiscap_device_table_free, axiscap_device_table_new, axiscap_device_table_update,
};
pub use gpu::faults::{ProfileFaults, axiscap_device_table_clear_faults, axiscap_device_table_faults};
pub use gpu::launch::{AXISCAP_OVERLAP_NONE, AXISCAP_OVERLAP_PROGRAMMATIC, axiscap_launch};
pub use job::call::{
    AXISCAP_ADD_CAP, AXISCAP_ADD_CAP_NORM, AXISCAP_BF16, AXISCAP_CAP, AXISCAP_CAP_NORM, AXISCAP_F16,
    AXISCAP_F32, Job,
};
pub use job::row_stat::{AXISCAP_BAD_PROFILE, AXISCAP_ENGAGED, AXISCAP_NON_FINITE, RowStat};
pub use job::run::axiscap_run;
pub use last_error::axiscap_last_error;
pub use status::Status;
pub use table::change::{axiscap_table_set_bound, axiscap_table_set_strength};
pub use table::make::{Table, TableInfo, axiscap_table_describe, axiscap_table_free, axiscap_table_new};
pub use version::axiscap_version;

/// Handles may be used from any thread, and those that are only read from several at once.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Caps>();
    any_thread::<Table>();
    any_thread::<Device>();
    any_thread::<DeviceTable>();
};
