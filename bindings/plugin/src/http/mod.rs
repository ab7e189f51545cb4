//! The local interface: metrics, and caps that are looked at and replaced while the host serves.
//!
//! `docs/http.md` describes it. It is off unless `AXISCAP_LISTEN` says where it listens. One thread serves all
//! clients (`server.rs`). The crates that serve HTTP wait for a client on a thread of its own and read headers of
//! any length, so only the parser is taken from one (`httparse`).

mod address;
mod caps;
mod change;
mod connection;
mod control;
mod metrics;
mod request;
mod response;
mod routes;
mod server;
mod socket;
mod thread;
mod unix;

#[cfg(test)]
mod tests;

pub(crate) use address::{Address, EXPECTED};
pub(crate) use control::{Control, Origin};
pub(crate) use socket::Listener;

/// Serves on a listener until the process ends.
///
/// # Errors
/// The system makes no thread.
pub(crate) fn serve(listener: Listener, control: Control) -> Result<(), String> {
    let (address, unix) = (listener.address().to_string(), listener.is_unix());
    thread::serve(listener, move |request| routes::answer(&control, unix, request))
        .map_err(|error| format!("AXISCAP_LISTEN: no thread can be made: {error}"))?;
    tracing::info!("metrics and caps are on {address}");
    Ok(())
}
