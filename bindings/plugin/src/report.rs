//! Reports to the launcher, as JSON lines on its socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::send::send;

/// How long a launcher that does not read may hold up the host.
const PATIENCE: Duration = Duration::from_secs(1);

/// The connection to the launcher, if there is one.
#[derive(Debug)]
pub(crate) struct Reporter {
    path: Option<PathBuf>,
    connection: Mutex<Option<Connection>>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// The process that made it. A forked child makes its own.
    process: u32,
}

impl Reporter {
    /// Returns the reporter for a launcher's socket.
    pub(crate) fn new(path: Option<&Path>) -> Self {
        Self { path: path.map(Into::into), connection: Mutex::new(None) }
    }

    /// Reports an event with these fields. A launcher that has gone is no reason to stop.
    pub(crate) fn send(&self, event: &str, fields: Value) {
        let Some(path) = &self.path else { return };
        let process = std::process::id();
        let mut line = json!({ "event": event, "pid": process });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
            line.extend(fields);
        }
        let line = format!("{line}\n");
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.as_ref().is_none_or(|connection| connection.process != process) {
            *connection = connect(path).map(|stream| Connection { stream, process }).ok();
        }
        if let Some(Connection { stream, .. }) = &*connection
            && write_all(stream, line.as_bytes()).is_err()
        {
            *connection = None;
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(stream.as_fd(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn events_are_lines_of_json_and_a_launcher_that_has_gone_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let reporter = Reporter::new(Some(&path));
        reporter.send("early", json!({}));
        let listener = UnixListener::bind(&path).unwrap();
        reporter.send("loaded", json!({ "devices": ["CPU"] }));
        let mut lines = BufReader::new(listener.accept().unwrap().0).lines();
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line, json!({ "event": "loaded", "pid": std::process::id(), "devices": ["CPU"] }));
        drop((lines, listener));
        for _ in 0..3 {
            reporter.send("late", json!({}));
        }
        Reporter::new(None).send("nothing", json!({}));
    }
}
