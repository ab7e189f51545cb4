//! A progress bar on stderr, where that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of `length` steps under a name. Where stderr is no terminal it shows nothing.
pub(crate) fn bar(name: &'static str, length: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length as u64), target).with_prefix(name);
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:40}] {pos}/{len} {elapsed} (left {eta})")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
