//! llama.cpp's options of several letters after one dash (`-ngl 99`), which clap does not have.
//!
//! The command line is rewritten before clap sees it: `-ngl` becomes `--gpu-layers`. As in llama.cpp,
//! underscores in the names of long options are dashes. Values of options, and everything after `--`, stay
//! as they are. The help names the options as llama.cpp does.

use std::ffi::{OsStr, OsString};

use clap::builder::StyledStr;
use clap::{Arg, Command};

/// llama.cpp's options and the long options that they stand for, in every command that has these.
const FLAGS: [(&str, &str); 6] = [
    ("-ngl", "--gpu-layers"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-fa", "--flash-attn"),
    ("-ub", "--ubatch"),
    ("-sys", "--system"),
];

/// Rewrites a command line, the program's name first, for `command`.
pub(crate) fn expand(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    let mut current = command;
    let (mut is_value, mut is_rest) = (false, false);
    let mut index = 0;
    let rewrite = move |argument: OsString| {
        let is_name = std::mem::replace(&mut index, 1) == 0;
        if is_name || is_rest || std::mem::take(&mut is_value) {
            return argument;
        }
        let Some(text) = argument.to_str() else { return argument };
        if text == "--" {
            is_rest = true;
            return argument;
        }
        if !text.starts_with('-') {
            current = current.find_subcommand(text).unwrap_or(current);
            return argument;
        }
        let text = long(text);
        is_value = expects_value(current, &text);
        text.into()
    };
    arguments.into_iter().map(rewrite)
}

/// Returns an option in the form that clap takes. A value after `=` is kept.
fn long(option: &str) -> String {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let name = match FLAGS.iter().find(|(flag, _)| *flag == name) {
        Some((_, long)) => (*long).to_owned(),
        None if name.starts_with("--") => name.replace('_', "-"),
        None => return option.to_owned(),
    };
    value.map_or_else(|| name.clone(), |value| format!("{name}={value}"))
}

/// Returns whether the next argument is the value of this option.
fn expects_value(command: &Command, option: &str) -> bool {
    let takes_next = |arg: &&Arg| {
        arg.get_action().takes_values() && arg.get_num_args().is_none_or(|count| count.min_values() > 0)
    };
    if let Some(name) = option.strip_prefix("--") {
        let is_named = |arg: &&Arg| {
            let all = arg.get_long_and_visible_aliases().unwrap_or_default();
            all.contains(&name) || arg.get_all_aliases().unwrap_or_default().contains(&name)
        };
        return command.get_arguments().find(is_named).filter(takes_next).is_some();
    }
    // A cluster such as `-vn`: the first option with a value has the rest of the cluster, or else the next
    // argument.
    for (at, letter) in option.char_indices().skip(1) {
        let found = command.get_arguments().find(|arg| arg.get_short() == Some(letter));
        if found.as_ref().is_some_and(takes_next) {
            return at + letter.len_utf8() == option.len();
        }
    }
    false
}

/// Returns a command's help with llama.cpp's options beside the long ones, styled if `ansi`.
pub(crate) fn help(text: &StyledStr, ansi: bool) -> String {
    let text = if ansi { text.ansi().to_string() } else { text.to_string() };
    text.split_inclusive('\n').map(named).collect()
}

/// Puts llama.cpp's option into the columns that clap leaves empty for short options.
fn named(line: &str) -> String {
    const COLUMNS: &str = "      ";
    let Some(rest) = line.strip_prefix(COLUMNS) else { return line.to_owned() };
    let name = rest.trim_start_matches(|c: char| c == '\u{1b}' || c == '[' || c == 'm' || c.is_ascii_digit());
    let is = |long: &str| {
        let after = name.strip_prefix(long).and_then(|after| after.chars().next());
        after.is_some_and(|next| next != '-' && !next.is_alphanumeric())
    };
    match FLAGS.iter().find(|(_, long)| is(long)) {
        Some((flag, _)) => format!("{:>width$}, {rest}", flag, width = COLUMNS.len() - 2),
        None => line.to_owned(),
    }
}

/// Returns the arguments of this process, for `command`.
pub(crate) fn arguments(command: &Command) -> Vec<OsString> {
    expand(command, std::env::args_os()).collect()
}

/// Returns whether help on stdout may be styled.
pub(crate) fn is_styled() -> bool {
    use std::io::IsTerminal;
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == OsStr::new("dumb"));
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(line: &str) -> String {
        let arguments = std::iter::once("axiscap").chain(line.split(' ')).map(OsString::from);
        let words: Vec<_> = expand(&crate::command(), arguments).map(|w| w.into_string().unwrap()).collect();
        words[1..].join(" ")
    }

    #[test]
    fn every_flag_is_rewritten_and_its_value_stays() {
        for (flag, long) in FLAGS {
            assert_eq!(expanded(&format!("run {flag} 7 -v")), format!("run {long} 7 -v"));
            assert_eq!(expanded(&format!("run {flag}=a=b")), format!("run {long}=a=b"));
            assert_eq!(expanded(&format!("-v run -n 5 {flag}")), format!("-v run -n 5 {long}"));
        }
        assert_eq!(expanded("run --n_gpu_layers 3 --file a_b"), "run --n-gpu-layers 3 --file a_b");
        assert_eq!(expanded("run --temp=1_0"), "run --temp=1_0");
    }

    #[test]
    fn values_and_what_follows_two_dashes_stay() {
        for line in [
            "run -p -ngl --system -fa --prompt -sys -sys",
            "run --file -ctk -f -ctv -m -ub",
            "run -vp -ngl",
            "run --prompt=-ngl -p-ngl",
            "run -- -ngl -fa --n_predict",
            "run --json -- -sys",
            "-ngl=",
        ] {
            let last = line.rsplit(' ').next().unwrap();
            let expected = match last {
                "-sys" if line.contains(" -sys -sys") => line.replace(" -sys -sys", " -sys --system"),
                "-ngl=" => "--gpu-layers=".into(),
                _ => line.to_owned(),
            };
            assert_eq!(expanded(line), expected);
        }
        // An option whose value may be left out takes no option as its value.
        assert_eq!(expanded("run -fa -ngl 9 -fa"), "run --flash-attn --gpu-layers 9 --flash-attn");
        assert_eq!(expanded("run -fa on -ngl 9"), "run --flash-attn on --gpu-layers 9");
        // A cluster with its value inside.
        assert_eq!(expanded("run -n5 -ngl 9"), "run -n5 --gpu-layers 9");
    }

    #[cfg(unix)]
    #[test]
    fn an_argument_that_is_not_unicode_stays() {
        use std::os::unix::ffi::OsStringExt;
        let raw = OsString::from_vec(b"-ngl\xff".to_vec());
        let words = ["axiscap".into(), "run".into(), "-m".into(), raw.clone(), "-fa".into()];
        let all: Vec<_> = expand(&crate::command(), words).collect();
        assert_eq!((&all[3], all[4].to_str()), (&raw, Some("--flash-attn")));
    }

    #[test]
    fn the_help_of_every_command_names_the_flags_of_its_options() {
        for mut command in crate::command().get_subcommands().cloned() {
            for text in [command.render_help(), command.render_long_help()] {
                let (plain, styled) = (help(&text, false), help(&text, true));
                for (flag, long) in FLAGS {
                    let has = command.get_arguments().any(|arg| arg.get_long() == long.strip_prefix("--"));
                    assert_eq!(plain.contains(&format!("{flag}, {long}")), has, "{plain}");
                    assert_eq!(styled.contains(&format!("{flag}, ")), has, "{styled}");
                }
                assert_eq!(plain.lines().count(), text.to_string().lines().count());
            }
        }
    }

    #[test]
    fn llama_cpps_names_are_accepted_wherever_the_option_is() {
        let names = [
            ("model", Some('m'), &["model"][..]),
            ("prompt", Some('p'), &["prompt"]),
            ("prompt_file", Some('f'), &["file"]),
            ("system", None, &["system-prompt"]),
            ("max_tokens", Some('n'), &["predict", "n-predict"]),
            ("ctx", Some('c'), &["ctx-size"]),
            ("threads", Some('t'), &["threads"]),
            ("gpu_layers", None, &["gpu-layers", "n-gpu-layers"]),
            ("cache_type_k", None, &["cache-type-k"]),
            ("cache_type_v", None, &["cache-type-v"]),
            ("flash_attn", None, &["flash-attn"]),
            ("batch", Some('b'), &["batch-size"]),
            ("ubatch", None, &["ubatch-size"]),
            ("seed", Some('s'), &["seed"]),
            ("temp", None, &["temp", "temperature"]),
            ("top_k", None, &["top-k"]),
            ("top_p", None, &["top-p"]),
            ("min_p", None, &["min-p"]),
            ("repeat_penalty", None, &["repeat-penalty"]),
            ("repeat_last_n", None, &["repeat-last-n"]),
            ("presence_penalty", None, &["presence-penalty"]),
            ("frequency_penalty", None, &["frequency-penalty"]),
        ];
        let mut seen = 0;
        for command in crate::command().get_subcommands() {
            for arg in command.get_arguments() {
                let Some((_, short, long)) = names.iter().find(|(id, ..)| arg.get_id() == id) else {
                    continue;
                };
                seen += 1;
                let place = format!("{} {}", command.get_name(), arg.get_id());
                assert_eq!(arg.get_short(), *short, "{place}");
                let known = arg.get_long_and_visible_aliases().unwrap_or_default();
                assert!(long.iter().all(|name| known.contains(name)), "{place}: {known:?}");
            }
        }
        assert!(seen > 60, "{seen} options");
    }
}
