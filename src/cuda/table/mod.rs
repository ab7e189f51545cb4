//! Tables of caps in device memory: how they are laid out, uploaded and updated.

mod device_table;
mod pack;
mod row_profiles;
mod staging;

pub use device_table::DeviceTable;
pub use pack::{PackedTable, TableLayout, TableView};
pub use row_profiles::RowProfileBuffer;
