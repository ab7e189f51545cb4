//! A call: what happens to which rows.

pub(crate) mod call;
pub(crate) mod check;
pub(crate) mod row_stat;
pub(crate) mod run;
