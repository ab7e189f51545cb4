//! Cap files.
