//! The log: one line per event on stderr, where llama.cpp's own log is.

use std::fmt;
use std::io;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log. Events of other parts of axiscap are logged as well.
pub(crate) fn begin(level: LevelFilter) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .event_format(Lines)
        .finish();
    // A second call is that of a plugin that is attached already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Formats an event as `axiscap: LEVEL message key=value`. Information has no level.
struct Lines;

impl<S, F> FormatEvent<S, F> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, F>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(match *event.metadata().level() {
            Level::ERROR => "axiscap: error: ",
            Level::WARN => "axiscap: warning: ",
            Level::INFO => "axiscap: ",
            _ => "axiscap: debug: ",
        })?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
