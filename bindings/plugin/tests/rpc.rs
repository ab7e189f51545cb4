//! The plugin on more than one machine: a stock llama-server whose blocks stock RPC servers compute, over loopback.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use axiscap::file::CapFile;
use axiscap::{Bound, Policy};
use serde_json::{Value, json};

use support::interface::{Metrics, Served};
use support::server::{Server, command};
use support::{
    Host, agent, caps_for, caps_with, free_port, model, other_model, path, shipped_caps, with_plugin,
};

/// A stock RPC server.
struct Rpc {
    host: Host,
    endpoint: String,
}

impl Rpc {
    fn start(caps: &[&Path]) -> Self {
        Self::start_with(caps, |_| {})
    }

    fn start_with(caps: &[&Path], change: impl FnOnce(&mut Command)) -> Self {
        let endpoint = format!("127.0.0.1:{}", free_port());
        let (address, port) = endpoint.split_once(':').unwrap();
        let mut command = Command::new(path("AXISCAP_TEST_LLAMA_SERVER").with_file_name("ggml-rpc-server"));
        command.args(["--host", address, "--port", port, "--threads", "1"]).env_remove("GGML_BACKEND_PATH");
        if !caps.is_empty() {
            with_plugin(&mut command, caps);
        }
        change(&mut command);
        let mut host = Host::start(&mut command);
        host.wait_for("the RPC server listens", |_| std::net::TcpStream::connect(&*endpoint).ok());
        Self { host, endpoint }
    }
}

/// A llama-server with so many of its 30 blocks, and the logits, on these RPC servers.
fn client(caps: &[&Path], layers: usize, servers: &[&Rpc]) -> Server {
    Server::start_with(caps, &[], |command| on_servers(command, layers, servers))
}

fn on_servers(command: &mut Command, layers: usize, servers: &[&Rpc]) {
    let endpoints: Vec<_> = servers.iter().map(|server| &*server.endpoint).collect();
    command.args(["--rpc", &endpoints.join(","), "--gpu-layers", &layers.to_string()]);
}

/// Writes the shipped caps with a band at -40 and half the strength, for every position. A row that is capped twice is
/// moved further.
fn half_caps(folder: &Path) -> PathBuf {
    let path = caps_with(folder, "half.gguf", |_| Bound::band(-40.0, -40.0).unwrap());
    let mut file = CapFile::read(&path).unwrap();
    file.caps = file.caps.with_strength(0.5).unwrap().with_policy(Policy::default());
    file.write(&path).unwrap();
    path
}

/// Returns the rows of all caps, as a context's end was reported.
fn rows(ended: &Value) -> u64 {
    ended["stats"].as_array().unwrap().iter().map(|stats| stats["rows"].as_u64().unwrap()).sum()
}

/// The same text comes out whether the client caps, the server, or both have the caps, with a strength at which rows
/// that are capped twice would differ. The model is on the server as a whole, and in part.
#[test]
fn blocks_are_capped_once_on_whichever_side() {
    let folder = tempfile::tempdir().unwrap();
    let half = half_caps(folder.path());
    let infinite = caps_with(folder.path(), "infinite.gguf", |_| Bound::band(f32::MIN, f32::MAX).unwrap());
    for layers in [99, 6] {
        let bare = Rpc::start(&[]);
        let plain = client(&[], layers, &[&bare]).texts();
        let server = client(&[&infinite], layers, &[&bare]);
        assert_eq!(server.texts(), plain, "{}", server.host.log());
        server.end();

        let server = client(&[&half], layers, &[&bare]);
        let by_client = server.texts();
        let log = server.host.log();
        assert!(log.contains("devices that were registered later are hooked, too: RPC0"), "{log}");
        assert!(log.contains("the rows of each capped block travel"), "{log}");
        let ended = server.end();
        assert!(by_client.iter().zip(&plain).all(|(capped, plain)| capped != plain), "{by_client:?}");
        assert!(ended["stats"].as_array().unwrap().iter().all(|stats| stats["rows"].as_u64() > Some(60)));

        let mut capping = Rpc::start(&[&half]);
        let both = client(&[&half], layers, &[&capping]);
        assert_eq!(both.texts(), by_client, "{}\n{}", both.host.log(), capping.host.log());
        let log = both.host.log();
        assert!(log.contains("RPC0: the RPC server caps its blocks, with the same caps"), "{log}");
        let at_client = rows(&both.end());

        // The client alone knows of blocks that are its own.
        let by_server = client(&[], layers, &[&capping]).texts();
        match layers {
            99 => assert_eq!((by_server, at_client), (by_client, 0)),
            _ => assert!(by_server != by_client && by_server != plain && at_client > 100),
        }
        capping.host.terminate();
        assert_eq!(capping.host.events("fatal"), Vec::<Value>::new());
    }
}

/// Parts of blocks on a server: feed-forward networks with their norms, or without them, where no norm says whose
/// the outputs of blocks are. And caps that name the last norm alone, which only one of two servers has.
#[test]
fn parts_of_blocks_and_parts_without_the_norm_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let half = half_caps(folder.path());
    let last_norm_alone = caps_for(folder.path(), "last.gguf", &model(), &half);
    for tensors in [r"blk\.2[0-9]\.ffn_.*", r"blk\.2[0-9]\.ffn_(up|gate|down)\.weight"] {
        let on = |caps: &[&Path], server: &Rpc| {
            let client = Server::start_with(caps, &[], |command| {
                on_servers(command, 0, &[server]);
                command.args(["--override-tensor", &format!("{tensors}=RPC0[{}]", server.endpoint)]);
            });
            let texts = client.texts();
            assert_eq!(client.host.events("fatal"), Vec::<Value>::new(), "{}", client.host.log());
            texts
        };
        let (bare, capping) = (Rpc::start(&[]), Rpc::start(&[&half]));
        let (plain, expected) = (on(&[], &bare), on(&[&half], &bare));
        assert_ne!(plain, expected);
        assert_eq!(on(&[&half], &capping), expected, "{tensors}: {}", capping.host.log());
        // The caps name other norms than those of feed-forward networks.
        let log = capping.host.log();
        assert!(log.contains("not capped: ") != tensors.contains('|'), "{log}");
        assert!(log.contains("such parts are not capped here") == tensors.contains('|'), "{log}");
    }
    let (one, other) = (Rpc::start(&[]), Rpc::start(&[]));
    let expected = client(&[&half], 99, &[&one, &other]).texts();
    drop((one, other));
    let (one, other) = (Rpc::start(&[&last_norm_alone]), Rpc::start(&[&last_norm_alone]));
    let client = client(&[&last_norm_alone], 99, &[&one, &other]);
    assert_eq!(client.texts(), expected, "{}\n{}", one.host.log(), other.host.log());
}

/// One of two servers has the plugin, and each computes a part of the model.
#[test]
fn two_servers_and_their_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let half = half_caps(folder.path());
    let (one, other) = (Rpc::start(&[]), Rpc::start(&[]));
    let expected = client(&[&half], 99, &[&one, &other]).texts();
    drop((one, other));

    let capping = Rpc::start_with(&[&half], |command| _ = command.env("AXISCAP_LISTEN", "127.0.0.1:0"));
    let log = capping.host.log();
    let control =
        log.lines().find_map(|line| line.split_once("metrics and caps are on ")).unwrap().1.to_owned();
    let bare = Rpc::start(&[]);
    let server = Served::start_with(&half, |command| {
        on_servers(command, 99, &[&bare, &capping]);
        command.args(["--tensor-split", "25,6"]);
    });
    assert_eq!(server.texts(), expected, "{}", server.host.log());

    // Each side counts the rows that it capped itself.
    let mut answer = agent().get(format!("{control}/metrics")).call().unwrap();
    let theirs = Metrics::parse(&answer.body_mut().read_to_string().unwrap());
    let ours = server.metrics();
    let file = CapFile::read(&half).unwrap();
    let mut capped = [0, 0];
    for entry in file.caps.caps() {
        let block = entry.block.to_string();
        let rows = [&ours, &theirs].map(|side| side.sum("axiscap_rows_total", &[("block", &block)]));
        assert!(rows.iter().filter(|&&rows| rows > 0.0).count() == 1, "block {block}: {rows:?}");
        capped[usize::from(rows[1] > 0.0)] += 1;
    }
    assert!(capped.iter().all(|&blocks| blocks > 0), "{capped:?}");
    assert_eq!((ours.get("axiscap_faults_total"), theirs.get("axiscap_faults_total")), (0.0, 0.0));

    // Caps cannot change on one side only.
    for change in [json!({ "strength": 1 }), json!({ "enabled": false })] {
        let (status, answer) = server.put(&change);
        assert_eq!(status, 409, "{answer}");
        assert!(
            answer["error"]["reason"].as_str().unwrap().contains("an RPC server caps blocks"),
            "{answer}"
        );
        let mut answer = agent().put(format!("{control}/caps")).send_json(&change).unwrap();
        let value: Value = answer.body_mut().read_json().unwrap();
        assert_eq!(answer.status(), 409, "{value}");
        assert!(
            value["error"]["reason"].as_str().unwrap().contains("a client of this RPC server counts"),
            "{value}"
        );
    }
    server.change(&json!({ "strength": 0.5 }));
    assert_eq!(server.texts(), expected);
    server.server.end();
}

/// A server that caps the model in another way would cap it twice, or not as the client says.
#[test]
fn a_server_with_other_caps_ends_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let half = half_caps(folder.path());
    let capping = Rpc::start(&[&shipped_caps()]);
    let start = || {
        let mut command = command(free_port(), &[]);
        with_plugin(&mut command, &[&half]);
        on_servers(&mut command, 99, &[&capping]);
        command
    };
    let mut host = Host::start(&mut start());
    assert!(!host.wait().success());
    let fatal = host.events("fatal");
    let reason = fatal[0]["reason"].as_str().unwrap();
    assert!(reason.contains("which are other caps than those of this process"), "{reason}");
    assert!(reason.contains(shipped_caps().to_str().unwrap()), "{reason}");

    // Caps of another model are no reason against it: the client caps.
    let other = other_model(folder.path());
    let of_other = caps_for(folder.path(), "of-other.gguf", &other, &half);
    let bare = Rpc::start(&[]);
    let expected = client(&[&half], 99, &[&bare]).texts();
    let capping = Rpc::start(&[&of_other]);
    let server = client(&[&half], 99, &[&capping]);
    assert_eq!(server.texts(), expected, "{}", server.host.log());
    assert!(rows(&server.end()) > 100);
}

/// A server outlives its clients. Each model that comes gets its own caps, or none.
#[test]
fn models_take_turns_on_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let half = half_caps(folder.path());
    let other = other_model(folder.path());
    let of_other = caps_for(folder.path(), "of-other.gguf", &other, &half);
    let with = |caps: &[&Path], server: &Rpc, model: Option<&Path>| {
        let client = Server::start_with(caps, &[], |command| {
            on_servers(command, 99, &[server]);
            if let Some(model) = model {
                command.arg("--model").arg(model);
            }
        });
        client.texts()
    };
    let bare = Rpc::start(&[]);
    let expected = with(&[&half], &bare, None);
    let (plain_other, capped_other) =
        (with(&[], &bare, Some(&other)), with(&[&of_other], &bare, Some(&other)));
    assert_ne!(plain_other, capped_other);

    let mut both = Rpc::start(&[&half, &of_other]);
    for _ in 0..2 {
        assert_eq!(with(&[], &both, None), expected);
        assert_eq!(with(&[], &both, Some(&other)), capped_other);
    }
    assert_eq!(both.host.events("capped").len(), 2, "{}", both.host.log());
    both.host.terminate();
    assert_eq!(both.host.events("fatal"), Vec::<Value>::new());

    let one = Rpc::start(&[&half]);
    assert_eq!(with(&[], &one, None), expected);
    assert_eq!(with(&[], &one, Some(&other)), plain_other);
    assert_eq!(with(&[], &one, None), expected);
    assert_eq!(one.host.events("not_capped").len(), 1, "{}", one.host.log());
}
