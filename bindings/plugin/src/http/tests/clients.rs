//! Clients that are slow, broken or many.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::{Served, read_answer};
use crate::http::connection::PATIENCE;
use crate::http::request::{MAX_BODY, Request};
use crate::http::response::Response;

fn echo(request: &Request) -> Response {
    match &*request.path {
        "/panic" => panic!("asked for"),
        "/large" => Response::metrics("x".repeat(32 << 20)),
        _ => Response::metrics(String::from_utf8_lossy(&request.body).into_owned()),
    }
}

#[test]
fn clients_that_say_nothing_or_nonsense_do_not_hold_up_others() {
    let served = Served::on_a_port(echo);
    let start = Instant::now();
    let mut held = Vec::new();
    for i in 0..100_usize {
        let mut stream = served.connect();
        let sent: &[u8] = match i % 5 {
            0 => b"",
            1 => b"PUT /caps HTTP/1.1\r\nContent-Length: 60000\r\n\r\n{",
            2 => b"GET / HT",
            3 => b"\x16\x03\x01\x00\xff\xff\xff",
            _ => &[0; 9000],
        };
        // The server may have closed it to make room.
        let _ = stream.write_all(sent);
        if i % 7 == 0 {
            let _ = stream.shutdown(Shutdown::Both);
        }
        held.push(stream);
        assert_eq!(served.ask("PUT", "/", "here"), (200, "here".into()));
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_others() {
    let served = Served::on_a_port(echo);
    let start = Instant::now();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = served.connect();
        stream.write_all(b"GET /large HTTP/1.1\r\n\r\n").unwrap();
        held.push(stream);
        assert_eq!(served.ask("PUT", "/", "here"), (200, "here".into()));
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    let (status, body) = read_answer(held.pop().unwrap());
    assert_eq!((status, body.len()), (200, 32 << 20));
    drop(held);
    assert_eq!(served.ask("GET", "/", "").0, 200);
}

#[test]
fn a_slow_client_is_told_that_its_time_is_over() {
    let served = Served::on_a_port(echo);
    let (mut slow, mut silent) = (served.connect(), served.connect());
    let start = Instant::now();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = Vec::new();
    while answer.is_empty() {
        let _ = slow.write_all(b"G");
        let mut bytes = [0; 4096];
        match slow.read(&mut bytes) {
            Ok(count) => answer.extend_from_slice(&bytes[..count]),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}")
            }
        }
        assert!(start.elapsed() < 3 * PATIENCE);
    }
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    assert!(start.elapsed() >= PATIENCE);
    // One that has said nothing gets nothing.
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn a_body_that_is_too_large_is_refused_while_it_is_sent() {
    let served = Served::on_a_port(echo);
    let fits = "x".repeat(MAX_BODY);
    assert_eq!(served.ask("PUT", "/", &fits), (200, fits.clone()));
    let mut stream = served.connect();
    stream.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n").unwrap();
    // The answer is there although the client goes on.
    for _ in 0..16 {
        let _ = stream.write_all(&[b'x'; 4096]);
    }
    assert_eq!(read_answer(stream).0, 413);
    let mut stream = served.connect();
    stream.write_all(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n").unwrap();
    assert_eq!(read_answer(stream).0, 411);
}

#[test]
fn a_panic_is_an_answer_and_the_interface_goes_on() {
    let served = Served::on_a_port(echo);
    for _ in 0..3 {
        assert_eq!(served.ask("GET", "/panic", "").0, 500);
        assert_eq!(served.ask("PUT", "/", "still here"), (200, "still here".into()));
    }
}

#[test]
fn clients_side_by_side_get_their_own_answers() {
    let served = Served::on_a_port(echo);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let served = &served;
            scope.spawn(move || {
                for request in 0..50 {
                    let body = format!("{client}: {request}").repeat(100);
                    assert_eq!(served.ask("PUT", "/", &body), (200, body));
                }
            });
        }
    });
    // Clients that go away before their answer.
    for _ in 0..50 {
        let mut stream = served.connect();
        stream.write_all(b"GET /large HTTP/1.1\r\n\r\n").unwrap();
        drop(stream);
    }
    assert_eq!(served.ask("GET", "/", "").0, 200);
}

#[test]
fn a_forked_child_closes_the_socket_and_the_parent_serves_on() {
    let served = Served::on_a_port(echo);
    let descriptors = || {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| name.parse::<i32>().unwrap()).collect::<Vec<_>>()
    };
    let port = served.connect().peer_addr().unwrap().port();
    let listens = |descriptor: i32| {
        // SAFETY: an all-zero value is valid for this plain structure.
        let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        let mut size = size_of::<libc::sockaddr_in>() as u32;
        let (mut on, mut on_size) = (0_i32, size_of::<i32>() as u32);
        // SAFETY: any descriptor may be asked, and the structures can be written.
        let found = unsafe {
            libc::getsockname(descriptor, (&raw mut name).cast(), &raw mut size) == 0
                && libc::getsockopt(
                    descriptor,
                    libc::SOL_SOCKET,
                    libc::SO_ACCEPTCONN,
                    (&raw mut on).cast(),
                    &raw mut on_size,
                ) == 0
        };
        found && on == 1 && u16::from_be(name.sin_port) == port
    };
    let listening = descriptors().into_iter().find(|&descriptor| listens(descriptor)).unwrap();
    // SAFETY: the child only makes system calls until it ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(libc::fcntl(listening, libc::F_GETFD) >= 0)) };
    }
    let mut status = -1;
    // SAFETY: a child that has not been waited for.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0));
    assert!(listens(listening));
    assert_eq!(served.ask("GET", "/", "").0, 200);
}
