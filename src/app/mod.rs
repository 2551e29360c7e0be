//! Subcommands: what the command line does.
