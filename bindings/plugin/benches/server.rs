//! What the plugin costs a stock llama-server: tokens per second with caps on eight blocks, and with the plugin
//! but without caps, each against the server alone. `scripts/bench-server` runs it.
//!
//! All servers run at the same time, and one of them computes. A round has each complete the same prompts, in
//! turns, and gives a ratio of tokens per second for each pair. With several slots as many requests run at the same
//! time. A process is some percent faster or slower than another of the same program, so servers are started again
//! and again: a launch's ratio is the median of its rounds, and the interval is that over launches. Prints JSON to
//! stdout. `CLOCK=processor` measures by processor time alone, with one slot and one thread.

#![allow(missing_docs, reason = "a program")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use axiscap::CapSet;
use axiscap::file::CapFile;
use axiscap_testing::median::{interval, median, sorted};
use serde_json::{Value, json};

use support::server::Server;
use support::{PROMPTS, model, shipped_caps, with_plugin};

const BLOCKS: std::ops::Range<usize> = 20..28;
/// Tokens per request.
const TOKENS: usize = 24;
/// Rounds of each launch that count.
const ROUNDS: usize = 6;

/// Writes caps on eight blocks: the shipped ones, whose blocks lend their axes to those without.
fn eight_blocks(folder: &Path) -> PathBuf {
    let mut file = CapFile::read(&shipped_caps()).expect("the shipped caps");
    let policy = file.caps.policy();
    let shipped = file.caps.caps().to_vec();
    let caps = BLOCKS.map(|block| {
        let nearest = shipped.iter().min_by_key(|entry| entry.block.abs_diff(block)).expect("caps");
        let mut entry = nearest.clone();
        entry.block = block;
        entry
    });
    file.caps = CapSet::new(caps).expect("caps").with_policy(policy);
    let path = folder.join("eight.gguf");
    file.write(&path).expect("a cap file");
    path
}

/// How tokens per second are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Clock {
    /// By the time that passes, with two threads.
    Wall,
    /// By the processor time of the server, with one thread. Other guests of the host move it less.
    Processor,
}

/// Returns the processor time of all threads of a server, in seconds.
fn processor_time(server: &Server) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.host.id())).expect("a process");
    let time = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|time| time.parse::<f64>().ok()).unwrap_or(0.0)
    };
    tasks.map_while(Result::ok).map(time).sum::<f64>() * 1e-9
}

/// Returns the tokens per second of a server that completes as many prompts as it has slots.
fn speed(server: &Server, slots: usize, clock: Clock) -> f64 {
    let complete = |index: usize| {
        let body = json!({
            "prompt": PROMPTS[index % PROMPTS.len()], "n_predict": TOKENS, "temperature": 0, "ignore_eos": true,
            "cache_prompt": false,
        });
        server.post("/completion", &body)
    };
    if clock == Clock::Processor {
        let start = processor_time(server);
        complete(0);
        return TOKENS as f64 / (processor_time(server) - start);
    }
    if slots == 1 {
        // The server's own clock, without HTTP.
        return complete(0)["timings"]["predicted_per_second"].as_f64().expect("a speed");
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..slots).map(|index| scope.spawn(move || complete(index))).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("an answer")["tokens_predicted"], TOKENS);
        }
    });
    (slots * TOKENS) as f64 / start.elapsed().as_secs_f64()
}

/// Returns the servers in another order for each number. Six orders have each server as often first as last.
fn in_turns(number: usize) -> [usize; 3] {
    let mut order = [0, 1, 2];
    order.rotate_left(number % 3);
    if number % 2 == 1 {
        order.reverse();
    }
    order
}

/// The speeds of one launch: of the server alone, with caps, and with the plugin alone, by round.
struct Launch {
    speeds: [Vec<f64>; 3],
    rows: u64,
    engaged: u64,
}

fn launch(slots: usize, clock: Clock, number: usize, caps: &Path) -> Launch {
    let (parallel, context) = (slots.to_string(), (slots * 512).to_string());
    let threads = if clock == Clock::Processor { "1" } else { "2" };
    let arguments = ["--parallel", &*parallel, "--ctx-size", &*context, "--threads", threads];
    let start = |way: usize| match way {
        0 => Server::start(&[], &arguments),
        1 => Server::start(&[caps], &arguments),
        _ => Server::start_with(&[], &arguments, |command| with_plugin(command, &[])),
    };
    // What is started first may get other memory.
    let mut servers = [const { None }; 3];
    for way in in_turns(number) {
        servers[way] = Some(start(way));
    }
    let servers = servers.map(|server| server.expect("each is started"));
    let mut speeds = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        for server in in_turns(round) {
            let found = speed(&servers[server], slots, clock);
            // The first round warms up.
            if round > 0 {
                speeds[server].push(found);
            }
        }
    }
    let [_, capped, _] = servers;
    let ended = capped.end();
    let sum =
        |key: &str| ended["stats"].as_array().unwrap().iter().map(|cap| cap[key].as_u64().unwrap()).sum();
    Launch { speeds, rows: sum("rows"), engaged: sum("engaged") }
}

fn measure(slots: usize, clock: Clock, launches: usize, caps: &Path) -> Value {
    let mut all = Vec::with_capacity(launches);
    let ratio = |launch: &Launch, way: usize| {
        let [alone, ..] = &launch.speeds;
        median(&sorted(launch.speeds[way].iter().zip(alone).map(|(way, alone)| way / alone)))
    };
    for number in 1..=launches {
        let launch = launch(slots, clock, number, caps);
        let [capped, plugin] = [1, 2].map(|way| ratio(&launch, way));
        eprintln!(
            "{clock:?}, {slots} slots, launch {number} of {launches}: capped {capped:.3}, plugin without caps {plugin:.3}"
        );
        all.push(launch);
    }
    let summary = |way: usize| {
        let ratios = sorted(all.iter().map(|launch| ratio(launch, way)));
        let interval = interval(&ratios);
        eprintln!("median {:.4}, 95 % interval {interval:.4?}", median(&ratios));
        json!({ "ratio_median": median(&ratios), "ratio_ci95": interval.map(|(low, high)| [low, high]) })
    };
    let (rows, engaged) = all.iter().fold((0, 0), |(rows, engaged), l| (rows + l.rows, engaged + l.engaged));
    json!({
        "slots": slots,
        "clock": format!("{clock:?}"),
        "launches": launches,
        "rounds_per_launch": ROUNDS,
        "tokens_per_request": TOKENS,
        "capped_blocks": BLOCKS.collect::<Vec<_>>(),
        "share_of_rows_moved": engaged as f64 / rows as f64,
        "capped": summary(1),
        "plugin_without_caps": summary(2),
        "tokens_per_second_by_launch": all.iter().map(|launch| &launch.speeds).collect::<Vec<_>>(),
    })
}

fn main() {
    let launches = std::env::var("LAUNCHES").map_or(24, |launches| launches.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let caps = eight_blocks(folder.path());
    let mut ways = vec![(1, Clock::Processor)];
    if std::env::var("CLOCK").as_deref() != Ok("processor") {
        ways.splice(0..0, [(1, Clock::Wall), (4, Clock::Wall)]);
    }
    let results: Vec<_> =
        ways.into_iter().map(|(slots, clock)| measure(slots, clock, launches, &caps)).collect();
    let name = model().file_name().map(|name| name.to_string_lossy().into_owned());
    println!("{}", json!({ "model": name, "results": results }));
}
