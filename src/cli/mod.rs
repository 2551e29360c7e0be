//! Command-line structs (clap).
