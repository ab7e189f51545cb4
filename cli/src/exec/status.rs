//! The exit status of the host, which is that of this program.

use std::fmt;

/// A host that ended without success, or could not be started. What there is to say about it has been said.
#[derive(Debug)]
#[cfg_attr(not(unix), allow(dead_code, reason = "on other systems there is no host"))]
pub(super) struct HostStatus(pub(super) u8);

impl fmt::Display for HostStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the program ended with status {}", self.0)
    }
}

impl std::error::Error for HostStatus {}

/// Returns the exit status that a failure stands for, if it is only that the host ended so.
pub(crate) fn status(error: &anyhow::Error) -> Option<u8> {
    error.downcast_ref().map(|&HostStatus(status)| status)
}
