//! The plugin in a stock llama-server.

mod support;

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use axiscap::Bound;
use serde_json::json;

use support::server::{Server, command};
use support::{
    Host, LIMIT, PROMPTS, agent, caps_with, check_floors, free_port, model, other_model, shipped_caps,
    with_plugin,
};

fn band_at(value: f32) -> impl Fn(Bound) -> Bound {
    move |_| Bound::band(value, value).unwrap()
}

#[test]
fn infinite_bounds_change_nothing_and_floors_hold() {
    let folder = tempfile::tempdir().unwrap();
    let infinite = caps_with(folder.path(), "infinite.gguf", |_| Bound::band(f32::MIN, f32::MAX).unwrap());
    let tight = caps_with(folder.path(), "tight.gguf", band_at(60.0));
    let texts = |server: &Server| -> Vec<String> {
        let mut texts = server.texts();
        texts.push(server.chat("Who are you?"));
        texts
    };
    let plain = texts(&Server::start(&[], &[]));
    let server = Server::start(&[&infinite], &[]);
    assert_eq!(texts(&server), plain);
    let shown = server.end();
    assert!(shown["stats"][0]["rows"].as_u64() > Some(100) && shown["stats"][0]["engaged"] == 0, "{shown}");

    let server = Server::start(&[&shipped_caps()], &[]);
    texts(&server);
    // The warm-up has shown that capping is on, before any request.
    assert_eq!(server.host.events("capped").len(), 1);
    check_floors(&server.end(), &shipped_caps());

    for engine in ["auto", "views"] {
        let server = Server::start_with(&[&tight], &[], |command| {
            command.env("AXISCAP_ENGINE", engine);
        });
        for (capped, plain) in texts(&server).iter().zip(&plain) {
            assert_ne!(capped, plain);
        }
        for stats in server.end()["stats"].as_array().unwrap() {
            assert_eq!((stats["min_after"].as_f64(), stats["max_after"].as_f64()), (Some(60.0), Some(60.0)));
        }
    }
}

#[test]
fn slots_streams_and_cancelled_requests() {
    let caps = shipped_caps();
    let server = Server::start(&[&caps], &["--parallel", "4", "--ctx-size", "4096"]);
    let alone = server.texts();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|i| {
                let server = &server;
                scope.spawn(move || (i, server.complete(PROMPTS[i % 3])))
            })
            .collect();
        // A reader that goes away in the middle of a stream.
        for _ in 0..3 {
            cancel_a_stream(&server.url);
        }
        for thread in threads {
            let (i, text) = thread.join().unwrap();
            assert!(!text.is_empty() && alone[i % 3].len() > 1);
        }
    });
    let body = json!({ "prompt": PROMPTS[0], "n_predict": 8, "temperature": 0, "stream": true });
    let mut answer = agent().post(format!("{}/completion", server.url)).send_json(&body).unwrap();
    let stream = answer.body_mut().read_to_string().unwrap();
    assert!(stream.matches("data: ").count() >= 8, "{stream}");
    assert_eq!(server.complete(PROMPTS[1]), alone[1]);
    check_floors(&server.end(), &caps);
}

fn cancel_a_stream(url: &str) {
    use std::io::{Read, Write};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let body = json!({ "prompt": "Tell me a long story.", "n_predict": 400, "stream": true }).to_string();
    let request = format!(
        "POST /completion HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut some = [0; 256];
    assert!(stream.read(&mut some).unwrap() > 0);
}

#[test]
fn a_context_that_shifts_and_one_for_embeddings() {
    let caps = shipped_caps();
    let server = Server::start(&[&caps], &["--ctx-size", "256", "--context-shift", "--parallel", "1"]);
    let body = json!({ "prompt": PROMPTS[1], "n_predict": 400, "temperature": 0, "ignore_eos": true });
    let answer = server.post("/completion", &body);
    assert_eq!(answer["tokens_predicted"], 400, "{answer}");
    check_floors(&server.end(), &caps);

    let server = Server::start(&[&caps], &["--embedding", "--pooling", "mean"]);
    let answer = server.post("/v1/embeddings", &json!({ "input": ["a sad song", "a proof"] }));
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(2), "{answer}");
    let rows = server.end()["stats"][0]["rows"].as_u64();
    assert!(rows > Some(4), "{rows:?}");
}

#[test]
fn a_draft_model_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let draft = other_model(folder.path());
    let caps = shipped_caps();
    let plain = Server::start(&[&caps], &[]).complete(PROMPTS[0]);
    let arguments = ["--model-draft", draft.to_str().unwrap(), "--ctx-size", "1024"];
    let server = Server::start(&[&caps], &arguments);
    // Greedy decoding does not depend on the draft, but for rounding in batches of other sizes.
    assert!(server.complete(PROMPTS[0]).starts_with(&plain[..8]));
    let not_capped = server.host.events("not_capped");
    assert!(!not_capped.is_empty(), "{}", server.host.log());
    let log = server.host.log();
    check_floors(&server.end(), &caps);
    assert!(log.contains("is not for it: they are for a model with other norm weights"), "{log}");
}

#[test]
fn a_model_without_caps_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    let other = other_model(folder.path());
    let mut command = command(free_port(), &["--model", other.to_str().unwrap()]);
    with_plugin(&mut command, &[&shipped_caps()]);
    let mut host = Host::start(&mut command);
    let status = host.wait();
    assert!(!status.success());
    let fatal = host.events("fatal");
    assert!(fatal[0]["reason"].as_str().unwrap().contains("no caps are for this model"), "{fatal:?}");
    assert!(host.log().contains("the process ends rather than serve uncapped text"), "{}", host.log());

    // Where the operator says so, it is served, and the log says that it is not capped.
    let mut server =
        Server::start_with(&[&shipped_caps()], &["--model", other.to_str().unwrap()], |command| {
            command.env("AXISCAP_STRICT", "warn");
        });
    assert!(!server.complete(PROMPTS[0]).is_empty());
    let log = server.host.log();
    assert_eq!(log.matches("NOT CAPPED: no caps are for this model").count(), 1, "{log}");
    assert!(server.host.terminate().success());
}

#[test]
fn wrong_configurations_end_the_process_as_it_loads_the_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let caps = shipped_caps();
    let whole = std::fs::read(&caps).unwrap();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let caps = caps.to_str().unwrap();
    let twice = format!("{caps}:{caps}");
    let (half, text) = (write("half.gguf", &whole[..whole.len() / 2]), write("text.gguf", b"no caps"));
    let small_model = model().to_str().unwrap().to_owned();
    for (name, value, reason) in [
        ("AXISCAP_CAPS", "/absent/caps.gguf", "/absent/caps.gguf"),
        ("AXISCAP_CAPS", "", "AXISCAP_CAPS=\"\": expected cap files"),
        ("AXISCAP_CAPS", &half, "cut short"),
        ("AXISCAP_CAPS", &text, "text.gguf"),
        ("AXISCAP_CAPS", &small_model, "another kind of GGUF file"),
        ("AXISCAP_CAPS", empty.to_str().unwrap(), "expected files whose names end in .gguf, found none"),
        ("AXISCAP_CAPS", &twice, "are for the same model"),
        ("AXISCAP_STRENGTH", "2", "AXISCAP_STRENGTH=\"2\": expected a number from 0 to 1"),
        ("AXISCAP_STRICT", "no", "AXISCAP_STRICT=\"no\": expected abort or warn"),
        ("AXISCAP_ENGINE", "fast", "AXISCAP_ENGINE=\"fast\": expected"),
        ("AXISCAP_LOG", "all", "AXISCAP_LOG=\"all\": expected"),
        ("AXISCAP_GGML", "/absent/libggml.so", "/absent/libggml.so, named by AXISCAP_GGML, is not loaded"),
    ] {
        let mut command = command(free_port(), &[]);
        with_plugin(&mut command, &[Path::new(caps)]);
        command.env(name, value);
        let mut host = Host::start(&mut command);
        let status = host.wait();
        assert!(!status.success(), "{name}={value}: {}", host.log());
        assert!(host.log().contains(reason), "{name}={value}: {}", host.log());
    }
}

#[test]
fn without_caps_the_plugin_says_so_and_does_nothing() {
    let plain = Server::start(&[], &[]).complete(PROMPTS[2]);
    let mut server = Server::start_with(&[], &[], |command| {
        with_plugin(command, &[]);
        command.env("AXISCAP_STRENGHT", "1");
    });
    assert_eq!(server.complete(PROMPTS[2]), plain);
    let log = server.host.log();
    assert!(log.contains("AXISCAP_CAPS is not set: nothing is capped"), "{log}");
    assert!(log.contains("AXISCAP_STRENGHT is no variable that axiscap knows"), "{log}");
    assert!(server.host.terminate().success());
    assert_eq!(server.host.events("ended").len(), 0);
}

/// The devices that the server lists are the same with the plugin.
#[test]
fn the_plugin_is_no_device() {
    let list = |with: bool| {
        let mut command = Command::new(support::path("AXISCAP_TEST_LLAMA_SERVER"));
        command.arg("--list-devices");
        if with {
            with_plugin(&mut command, &[&shipped_caps()]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(list(true), list(false));
}

/// The program `axiscap run` links llama.cpp, and this server is a stock one of another version: where both continue
/// a prompt alike without caps, they begin alike with them, and mostly go on alike.
#[test]
fn the_program_that_links_llama_cpp_writes_the_same_text() {
    let Some(program) = std::env::var_os("AXISCAP_TEST_PROGRAM") else {
        eprintln!("skipped: the program axiscap is not built");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let tight = caps_with(folder.path(), "tight.gguf", band_at(60.0));
    let run = |caps: Option<&Path>, prompt: &str| {
        let mut command = Command::new(&program);
        command.args(["run", "--raw", "--temp", "0", "-n", "24", "--threads", "1", "--model"]).arg(model());
        command.args(["--prompt", prompt]);
        if let Some(caps) = caps {
            command.arg("--caps").arg(caps);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let all = |caps: Option<&Path>| -> Vec<_> { PROMPTS.iter().map(|prompt| run(caps, prompt)).collect() };
    let served = |caps: &[&Path]| -> Vec<_> {
        Server::start(caps, &[]).texts().iter().map(|text| text.trim_end().to_owned()).collect()
    };
    let alike: Vec<_> = all(None).iter().zip(served(&[])).map(|(run, served)| *run == served).collect();
    assert!(alike.contains(&true), "the two versions have no text in common");
    for caps in [&*shipped_caps(), &*tight] {
        let mut equal = 0;
        for (index, (run, served)) in all(Some(caps)).into_iter().zip(served(&[caps])).enumerate() {
            if alike[index] {
                // Last bits differ between versions and processors, and may show later in a text.
                let start = |text: &str| text.chars().take(12).collect::<String>();
                assert_eq!(start(&run), start(&served), "{}", PROMPTS[index]);
                equal += usize::from(run == served);
            }
        }
        eprintln!("{}: {equal} texts are equal", caps.display());
        assert!(equal > 0, "{}", caps.display());
    }
}
