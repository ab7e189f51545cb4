//! The C functions, called as C calls them: pointers, statuses and messages.

mod caps;
mod gpu;
mod hostile;
mod refused;
mod rows;
mod support;
mod table;
mod threads;
