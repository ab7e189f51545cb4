//! Cap files: read, written, refused.

mod bad_input;
mod output;
mod round_trip;
