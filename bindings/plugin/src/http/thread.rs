//! The thread that serves, apart from the host: its signals, its panics, and forks.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use super::request::Request;
use super::response::Response;
use super::server::Server;
use super::socket::Listener;

/// The descriptor that a forked child closes; -1 without one.
static LISTENING: AtomicI32 = AtomicI32::new(-1);

/// Serves on a thread of its own until the process ends, which does not wait for it.
///
/// A forked child does not serve. It has no such thread, and closes the socket, because clients would wait on
/// it for an answer once the parent has ended.
///
/// # Errors
/// Those of the system, which makes the thread.
pub(crate) fn serve(
    listener: Listener,
    answer: impl Fn(&Request) -> Response + Send + 'static,
) -> io::Result<()> {
    let descriptor = listener.as_raw_fd();
    let run = move || {
        let handler = |request: &Request| {
            let answered = catch_unwind(AssertUnwindSafe(|| answer(request)));
            answered.unwrap_or_else(|_| Response::error(500, "a bug in axiscap: it panicked"))
        };
        loop {
            let mut server = Server::new(&listener);
            let served = catch_unwind(AssertUnwindSafe(|| {
                loop {
                    if let Err(error) = server.turn(&handler) {
                        return error;
                    }
                }
            }));
            // The host goes on all the same, and its caps with it.
            match served {
                Ok(error) => tracing::warn!("{}: {error}", listener.address()),
                Err(_) => tracing::warn!("{}: a bug in axiscap: it panicked", listener.address()),
            }
            thread::sleep(Duration::from_secs(1));
        }
    };
    without_signals(|| thread::Builder::new().name("axiscap-http".into()).spawn(run))?;
    if LISTENING.swap(descriptor, Ordering::SeqCst) < 0 {
        // SAFETY: the handler only closes a descriptor, which a child may do between fork and exec. It stays
        // loaded until the process ends.
        unsafe { libc::pthread_atfork(None, None, Some(close_in_child)) };
    }
    Ok(())
}

unsafe extern "C" fn close_in_child() {
    let descriptor = LISTENING.swap(-1, Ordering::SeqCst);
    if descriptor >= 0 {
        // SAFETY: the thread that uses the descriptor is not there in the child.
        unsafe { libc::close(descriptor) };
    }
}

/// Makes a thread that receives no signals: those of the process are for threads of the host.
fn without_signals<R>(make: impl FnOnce() -> R) -> R {
    // SAFETY: an all-zero value is valid for this plain structure.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both sets can be written, and the mask is that of this thread.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let made = make();
    // SAFETY: the set was written by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    made
}
