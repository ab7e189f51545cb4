//! Where the interface listens: a unix socket, or a port of this machine alone.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What `AXISCAP_LISTEN` may say.
pub(crate) const EXPECTED: &str =
    "expected unix:PATH, 127.0.0.1:PORT or [::1]:PORT; other machines cannot be served";

/// An address that only this machine can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A port of the loopback interface; 0 stands for a free one.
    Tcp(SocketAddr),
}

impl Address {
    /// Parses an address. Names such as `localhost` are not resolved, because they may mean another machine.
    /// `{pid}` in a path stands for this process: programs that start others have a socket for each.
    pub(crate) fn parse(value: &OsStr) -> Option<Self> {
        if let Some(path) = value.as_bytes().strip_prefix(b"unix:") {
            return (!path.is_empty()).then(|| Self::Unix(with_process(path).into()));
        }
        let address: SocketAddr = value.to_str()?.parse().ok()?;
        address.ip().is_loopback().then_some(Self::Tcp(address))
    }
}

/// Returns a path with the number of this process for each `{pid}`.
fn with_process(path: &[u8]) -> OsString {
    const PROCESS: &[u8] = b"{pid}";
    let (mut rest, mut found) = (path, Vec::new());
    while let Some(at) = rest.windows(PROCESS.len()).position(|part| part == PROCESS) {
        found.extend_from_slice(&rest[..at]);
        found.extend_from_slice(std::process::id().to_string().as_bytes());
        rest = &rest[at + PROCESS.len()..];
    }
    found.extend_from_slice(rest);
    OsString::from_vec(found)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Address> {
        Address::parse(OsStr::new(text))
    }

    #[test]
    fn only_addresses_of_this_machine_are_taken() {
        assert_eq!(parse("unix:/run/a b.sock"), Some(Address::Unix("/run/a b.sock".into())));
        let process = std::process::id();
        let expected = format!("/run/{process}-{process}{{pid");
        assert_eq!(parse("unix:/run/{pid}-{pid}{pid"), Some(Address::Unix(expected.into())));
        assert_eq!(parse("unix:relative"), Some(Address::Unix("relative".into())));
        assert_eq!(parse("127.0.0.1:8181"), Some(Address::Tcp(([127, 0, 0, 1], 8181).into())));
        assert_eq!(parse("127.0.0.1:8181").unwrap().to_string(), "http://127.0.0.1:8181");
        assert_eq!(parse("[::1]:0").unwrap().to_string(), "http://[::1]:0");
        for wrong in [
            "",
            "unix:",
            "unix",
            "/run/a.sock",
            "8181",
            ":8181",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "0.0.0.0:8181",
            "[::]:8181",
            "192.168.1.7:8181",
            "10.0.0.1:1",
            "[fe80::1]:1",
            "[::ffff:127.0.0.1]:1",
            "localhost:8181",
            "example.com:80",
            "http://127.0.0.1:1",
            "127.0.0.1:1 ",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
