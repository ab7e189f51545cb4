//! An HTTP server with replies from a function.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

/// What a client sent.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Request line and headers, in lower case.
    pub(super) head: String,
    pub(super) body: Value,
    /// The question in the prompt, which is the index of its case.
    pub(super) question: usize,
    /// Number of requests with this question, with this one.
    pub(super) tries: usize,
}

type Respond = dyn Fn(&Request) -> String + Send + Sync;

/// Runs until it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server with a thread per connection. An empty response closes the connection.
    pub(super) fn start(respond: impl Fn(&Request) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_ended, seen, respond) = (Arc::clone(&ended), Arc::clone(&requests), Arc::new(respond));
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            for connection in listener.incoming() {
                if is_ended.load(Ordering::SeqCst) {
                    break;
                }
                let (seen, respond) = (Arc::clone(&seen), Arc::clone(&respond));
                connections.push(thread::spawn(move || serve(connection.unwrap(), &seen, &*respond)));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self { address, ended, requests, thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _ = TcpStream::connect(self.address);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the server panicked");
    }
}

/// Answers one request.
fn serve(mut connection: TcpStream, seen: &Mutex<Vec<Request>>, respond: &Respond) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "no request: {head}");
    }
    head.make_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let prompt = body["messages"][1]["content"].as_str().unwrap();
    let question = prompt.split("<question-1>\n").nth(1).and_then(|rest| rest.lines().next());
    let question = question.unwrap().parse().unwrap();
    let request = {
        let mut seen = seen.lock().unwrap();
        let tries = 1 + seen.iter().filter(|request| request.question == question).count();
        seen.push(Request { head, body, question, tries });
        seen.last().unwrap().clone()
    };
    // A client that has read enough may have closed the connection.
    let _ = connection.write_all(respond(&request).as_bytes());
}

/// Returns a response with a status line, headers and a body.
pub(super) fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

/// Returns a response of a model.
pub(super) fn reply(content: &str) -> String {
    let message = json!({ "role": "assistant", "content": content });
    let choice = json!({ "index": 0, "message": message, "finish_reason": "stop" });
    response("200 OK", "", &json!({ "choices": [choice] }).to_string())
}
