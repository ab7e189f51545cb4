//! The interface with a guard that computes nothing.

mod clients;
mod dashboard;
mod routes;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axiscap::RowStat;
use axiscap_ggml::{
    CapTotal, CapTotals, GuardCounts, GuardedContext, ModelCaps, ReplaceError, Replaced, ReplacedContext,
    SeenModel,
};
use serde_json::Value;

use super::control::{Capping, Control, InForce, Origin};
use super::request::Request;
use super::response::Response;
use super::{Address, Listener, thread};
use crate::caps;

/// One test serves at a time, because a process has one descriptor that a forked child closes.
static SERVING: Mutex<()> = Mutex::new(());

/// A client's time to see that it is not served.
const LIMIT: Duration = Duration::from_secs(20);

/// An interface that serves, until the process of the tests ends.
struct Served {
    address: Address,
    _serving: MutexGuard<'static, ()>,
}

impl Served {
    fn start(address: &Address, answer: impl Fn(&Request) -> Response + Send + 'static) -> Self {
        let serving = SERVING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let listener = Listener::bind(address).unwrap();
        let address = listener.address().clone();
        thread::serve(listener, answer).unwrap();
        Self { address, _serving: serving }
    }

    fn on_a_port(answer: impl Fn(&Request) -> Response + Send + 'static) -> Self {
        Self::start(&Address::Tcp(([127, 0, 0, 1], 0).into()), answer)
    }

    fn connect(&self) -> TcpStream {
        let Address::Tcp(address) = self.address else { panic!("a port") };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends a request and returns status and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        exchange(self.connect(), method, path, body)
    }
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    read_answer(stream)
}

fn read_answer(mut stream: impl Read) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap()
}

/// A guard with one context that has computed two rows.
#[derive(Debug, Clone)]
struct Fake(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    caps: InForce,
    /// Whether a replacement would leave the context without caps.
    refuses: bool,
}

fn shipped_caps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/assets/smollm2-135m-instruct.caps.gguf")
}

fn control() -> (Fake, Control) {
    let files = vec![shipped_caps()];
    let models = caps::read(&files).unwrap();
    let in_force = models.iter().cloned().map(Arc::new).collect();
    let caps = InForce { generation: 1, enabled: true, models: in_force };
    let fake = Fake(Arc::new(Mutex::new(State { caps, refuses: false })));
    let origin = Origin { files, strength: None, models };
    (fake.clone(), Control::new(fake, "0.9.4 (\"x\")", origin))
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn strength(&self) -> f32 {
        self.state().caps.models[0].caps.caps()[0].cap.strength()
    }
}

impl Capping for Fake {
    fn counts(&self) -> GuardCounts {
        let mut counts = GuardCounts::default();
        (counts.capped, counts.not_capped, counts.faults, counts.off) = (5, 2, 1, 3);
        counts
    }

    fn in_force(&self) -> InForce {
        self.state().caps.clone()
    }

    fn contexts(&self) -> Vec<GuardedContext> {
        let mut model = SeenModel::default();
        (model.blocks, model.width, model.logits) = (Some(30), Some(576), true);
        let State { caps, .. } = &*self.state();
        vec![GuardedContext {
            id: 1,
            caps: caps.models[0].name.clone(),
            model,
            enabled: caps.enabled,
            micro_batches: 1,
            stats: vec![total().stats],
            routes: Vec::new(),
        }]
    }

    fn totals(&self) -> Vec<CapTotals> {
        let caps = "a \"b\"\\c\nd".to_owned();
        let name = Some("assistant".to_owned());
        let older = CapTotals { generation: None, caps, cap: 0, block: 7, name, total: CapTotal::default() };
        let newer = CapTotals { generation: Some(1), total: total(), ..older.clone() };
        vec![older, newer]
    }

    fn replace(&self, models: Vec<ModelCaps>, enabled: bool) -> Result<Replaced, ReplaceError> {
        let State { caps, refuses } = &mut *self.state();
        let before = caps.models[0].name.clone();
        if *refuses && enabled {
            let reasons = "they have width 8, the model has 576".to_owned();
            return Err(ReplaceError::Missing { context: 1, caps: before, reasons });
        }
        let after = Some(models[0].name.clone());
        let models = models.into_iter().map(Arc::new).collect();
        *caps = InForce { generation: caps.generation + 1, enabled, models };
        let contexts = vec![ReplacedContext { id: 1, before, after }];
        Ok(Replaced { generation: caps.generation, contexts })
    }
}

/// Two rows: one within the bound by less than 0.25, and one 2 beyond it.
fn total() -> CapTotal {
    let mut total = CapTotal::default();
    total.stats.add(&RowStat { before: 1.5, after: 1.5, flags: 0 });
    total.stats.add(&RowStat { before: -0.5, after: 1.5, flags: RowStat::ENGAGED });
    (total.positive, total.negative) = (1.5, 0.5);
    (total.excess[7], total.excess[10]) = (1, 1);
    total
}

#[test]
fn a_unix_socket_serves_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http");
    let (_, control) = control();
    let served = Served::start(&Address::Unix(path.clone()), move |request| {
        super::routes::answer(&control, true, request)
    });
    let error = Listener::bind(&served.address).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // Clients of unix sockets name any host, or none.
    stream.write_all(b"GET /caps HTTP/1.1\r\nHost: caps\r\n\r\n").unwrap();
    let (status, body) = read_answer(stream);
    assert_eq!((status, &json(&body)["generation"]), (200, &1.into()));
}
