//! The endpoint against servers on this machine.

mod server;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::{Barrier, Mutex, mpsc};
use std::time::Duration;

use serde_json::json;

use self::server::{Server, reply, response};
use super::super::{Case, Endpoint, Judge, JudgeError, RoleCase};
use super::{Client, judge_with};

const KEY: &str = "sk-secret";

/// Makes cases whose questions are their indices.
fn with_cases<T>(count: usize, use_them: impl FnOnce(&[Case<'_>]) -> T) -> T {
    let questions: Vec<String> = (0..count).map(|index| index.to_string()).collect();
    let (role, system, answer) = ("pirate", "Be a pirate.", "Arr.");
    let cases: Vec<_> =
        questions.iter().map(|question| Case::Role(RoleCase { role, system, question, answer })).collect();
    use_them(&cases)
}

fn endpoint(url: String) -> Endpoint {
    Endpoint { key: Some(KEY.into()), ..Endpoint::new(url) }
}

/// Judges with short pauses, and returns the result with the scores.
fn judge(endpoint: &Endpoint, count: usize) -> (Result<bool, JudgeError>, Vec<u8>) {
    with_cases(count, |cases| {
        let client = Client::new(endpoint).unwrap().with_pause(Duration::from_millis(1));
        let mut scores = Vec::new();
        let result = judge_with(&client, endpoint.parallel, cases, &mut |index, score| {
            assert_eq!(index, scores.len());
            scores.push(score);
            ControlFlow::Continue(())
        });
        (result, scores)
    })
}

/// Judges one case with a server that always says the same, and returns the error and the number of requests.
fn error(response: &str) -> (JudgeError, usize) {
    let said = response.to_owned();
    let server = Server::start(move |_| said.clone());
    let error = judge(&endpoint(server.url()), 1).0.expect_err(response);
    assert!(!error.to_string().contains(KEY) && !format!("{error:?}").contains(KEY), "{error}");
    assert!(error.to_string().len() < 600, "{error}");
    (error, server.requests().len())
}

#[test]
fn every_case_is_asked_once_with_the_scale_and_its_texts() {
    let server = Server::start(|request| reply(["0", "**1**", "Score: 2", "3\n"][request.question % 4]));
    let judge = Judge::Endpoint(Endpoint { model: Some("small".into()), ..endpoint(server.url() + "/") });
    let mut scores = Vec::new();
    let all = with_cases(10, |cases| {
        judge.judge(cases, |index, score| {
            scores.push((index, score));
            ControlFlow::Continue(())
        })
    });
    assert!(all.unwrap());
    assert_eq!(scores, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1].into_iter().enumerate().collect::<Vec<_>>());
    let requests = server.requests();
    assert_eq!(requests.len(), 10);
    for request in requests {
        assert!(request.head.starts_with("post /v1/chat/completions "), "{}", request.head);
        assert_eq!(request.head.matches(&format!("authorization: bearer {KEY}")).count(), 1);
        assert_eq!(request.head.matches("content-type: application/json\r").count(), 1);
        assert_eq!(request.head.matches("content-type").count(), 1);
        assert_eq!((&request.body["model"], &request.body["temperature"]), (&json!("small"), &json!(0)));
        assert!(request.body["messages"][1]["content"].as_str().unwrap().contains("<answer-1>\nArr.\n"));
    }
    assert!(judge.judge(&[], |_, _| ControlFlow::Break(())).unwrap());
}

#[test]
fn scores_that_arrive_late_are_handed_over_in_order() {
    // The first reply leaves when the fourth request has arrived.
    let barrier = Barrier::new(2);
    let server = Server::start(move |request| {
        if matches!(request.question, 0 | 3) {
            barrier.wait();
        }
        reply(&(request.question % 4).to_string())
    });
    let (result, scores) = judge(&Endpoint { parallel: 2, ..Endpoint::new(server.url()) }, 6);
    assert!(result.unwrap());
    assert_eq!(scores, [0, 1, 2, 3, 0, 1]);
    let requests = server.requests();
    assert!(requests.iter().all(|request| !request.head.contains("authorization")), "{requests:?}");
    assert!(requests.iter().all(|request| request.body.get("model").is_none()), "{requests:?}");
}

#[test]
fn a_busy_or_failing_server_is_asked_again() {
    let server = Server::start(|request| match (request.question, request.tries) {
        (0, 1) => response("429 Too Many Requests", "Retry-After: 0\r\n", "{}"),
        (1, 1..=3) => response("500 Internal Server Error", "", "oops"),
        // The connection ends before the response, and within it.
        (2, 1) => String::new(),
        (2, 2) => reply("1")[..80].to_owned(),
        (2, 3) => response("503 Loading", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n", ""),
        _ => reply("3"),
    });
    let (result, scores) = judge(&endpoint(server.url()), 3);
    assert!(result.unwrap());
    assert_eq!(scores, [3, 3, 3]);
    assert_eq!(server.requests().len(), 2 + 4 + 4);
}

#[test]
fn a_server_that_keeps_failing_is_given_up() {
    let (failed, requests) = error(&response("500 Internal Server Error", "", "out of memory"));
    assert!(matches!(failed, JudgeError::Status { status: 500, tries: 4, answer: 1, .. }), "{failed}");
    assert!(failed.to_string().contains("out of memory"), "{failed}");
    assert_eq!(requests, 4);
    let (failed, requests) = error("");
    assert!(matches!(failed, JudgeError::Connection { tries: 4, .. }), "{failed}");
    assert_eq!(requests, 4);
}

#[test]
fn a_server_that_does_not_run_is_named() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failed = judge(&endpoint(format!("http://{address}")), 2).0.unwrap_err();
    assert!(matches!(failed, JudgeError::Connection { answer: 1, tries: 4, .. }), "{failed}");
    assert!(failed.to_string().contains(&address.to_string()), "{failed}");
}

#[test]
fn refusals_fail_at_once_with_the_message_but_without_the_key() {
    let body = json!({ "error": { "message": format!("Incorrect API key: {KEY}. {}", "x".repeat(1000)) } });
    let (failed, requests) = error(&response("401 Unauthorized", "", &body.to_string()));
    assert!(matches!(failed, JudgeError::Status { status: 401, tries: 1, .. }), "{failed}");
    let text = failed.to_string();
    assert!(text.contains("\"Incorrect API key: ***.") && text.contains("give a key"), "{text}");
    assert_eq!(requests, 1);
    for (status, body, quoted) in [
        ("404 Not Found", "not here", "not here"),
        ("400 Bad Request", r#"{"detail": "no such model"}"#, "\"no such model\""),
        ("422 Unprocessable", r#"{"error": "temperature"}"#, "\"temperature\""),
        ("403 Forbidden", r#"["no"]"#, r#"[\"no\"]"#),
    ] {
        let (failed, requests) = error(&response(status, "", body));
        assert!(failed.to_string().contains(quoted), "{failed}");
        assert_eq!(requests, 1, "{status}");
    }
}

#[test]
fn the_first_case_without_a_score_is_the_one_reported() {
    // The second answer is refused while the first one is still judged.
    let barrier = Barrier::new(2);
    let server = Server::start(move |request| match request.question {
        0 => {
            barrier.wait();
            reply("2")
        }
        1 => {
            barrier.wait();
            response("400 Bad Request", "", "first")
        }
        _ => response("400 Bad Request", "", "later"),
    });
    let (result, scores) = judge(&Endpoint { parallel: 2, ..Endpoint::new(server.url()) }, 100);
    assert!(matches!(result, Err(JudgeError::Status { answer: 2, .. })), "{result:?}");
    assert_eq!(scores, [2]);
    assert!(server.requests().len() <= 3);
}

#[test]
fn replies_that_are_no_scores_are_quoted() {
    let thought = json!({ "choices": [{ "message": { "content": null }, "finish_reason": "length" }] });
    for (response, problem, quoted) in [
        (reply("Two or three"), "exactly one number", "Two or three"),
        (reply(&format!("7 {KEY}")), "exactly one number", "7 ***"),
        (reply("<think>2"), "never leaves its thoughts", "<think>"),
        (reply(""), "has no text", ""),
        (response("200 OK", "", &thought.to_string()), "used up its tokens", "thoughts off"),
        (response("200 OK", "", "<html>hello"), "not a chat completion", "<html>hello"),
        (response("200 OK", "", "[]"), "not a chat completion", "[]"),
        (response("200 OK", "", r#"{"error": {"message": "no credit"}}"#), "not a", "\"no credit\""),
    ] {
        let (failed, requests) = error(&response);
        assert!(matches!(failed, JudgeError::Reply { answer: 1, .. }), "{failed}");
        let text = failed.to_string();
        assert!(text.contains(problem) && text.contains(quoted), "{text}");
        assert_eq!(requests, 1, "{text}");
    }
}

#[test]
fn thoughts_are_passed_over() {
    let server = Server::start(|_| reply("<think>\nIs it 1 or 2?\n</think>\n\nScore: **2**"));
    assert_eq!(judge(&endpoint(server.url()), 1).1, [2]);
}

#[test]
fn a_huge_reply_is_refused() {
    let (failed, requests) = error(&reply(&"3".repeat(2 << 20)));
    assert!(failed.to_string().contains("longer than 1048576 bytes"), "{failed}");
    assert_eq!(requests, 1);
    let (failed, _) = error(&response("400 Bad Request", "", &"x".repeat(2 << 20)));
    assert!(matches!(failed, JudgeError::Status { status: 400, .. }), "{failed}");
}

#[test]
fn redirections_are_not_followed() {
    let other = Server::start(|_| reply("3"));
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let location = format!("location: {}/chat/completions\r\n", other.url());
        let (failed, requests) = error(&response(status, &location, ""));
        assert!(failed.to_string().contains(&other.url()), "{failed}");
        assert_eq!(requests, 1);
    }
    assert!(other.requests().is_empty());
}

#[test]
fn a_stop_ends_pauses_and_asks_no_more() {
    let (paused, is_paused) = mpsc::channel();
    let paused = Mutex::new(paused);
    let server = Server::start(move |request| match request.question {
        0 => reply("1"),
        _ => {
            paused.lock().unwrap().send(()).unwrap();
            response("429 Too Many Requests", "Retry-After: 1000\r\n", "")
        }
    });
    let mut scores = Vec::new();
    let judge = Judge::Endpoint(Endpoint { parallel: 2, ..Endpoint::new(server.url()) });
    let result = with_cases(100, |cases| {
        judge.judge(cases, |index, score| {
            is_paused.recv().unwrap();
            scores.push((index, score));
            ControlFlow::Break(())
        })
    });
    assert!(!result.unwrap());
    assert_eq!(scores, [(0, 1)]);
    assert!(server.requests().len() <= 3);
}
